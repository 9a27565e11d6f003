"""Where the value goes wrong: critic, target solves, kept plans and models, each against a truth that can be had.

Truths are the episodes that the deterministic controller played, and solves that spend far more than training can. No
random numbers of the training are touched: what is looked at follows from constants of this module.

The value is soft. V and so Q hold, beside the rewards, the price of control: minus lambda times the discounted
divergence of the sampled actions from the prior. A return holds no such price, and is earned by the plans' means
instead of by samples. So Q minus return need not be 0 when all is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from soft_mpcritic.agent import Agent, AgentState
from soft_mpcritic.compilation import jit
from soft_mpcritic.config import PlannerConfig
from soft_mpcritic.dynamics import CHANGE_FLOOR
from soft_mpcritic.networks import MLP
from soft_mpcritic.planner import Models, Planner
from soft_mpcritic.planning import MPPI
from soft_mpcritic.replay import Replay
from soft_mpcritic.types import AnyArray, PlanResult, ReturnsFn, Trajectory, Transition

SEED = 20_000  # of all that is drawn here
TAIL = 0.05  # greatest weight gamma^n of what a time limit cut off, n steps later, for a return to count as whole
PATIENCE = 8  # solves as configured, one after another, that stand for planning anew
REFERENCE_ROUNDS = 2
SCALE_ROWS = 2048  # replayed transitions for the deviation of the changes
BINS = 10  # of the reliability curve


@dataclass(frozen=True)
class Effort:
    """How much is looked at."""

    steps: int = 512  # played steps whose Q is compared with their return
    windows: int = 512  # played steps from which models are rolled out
    solves: int = 16  # replayed states of one batch of solves
    batches: int = 1  # of solves; each meets another draw of the ensemble's members
    reference_samples: int = 2000


REPORT_EFFORT = Effort(steps=10_000, windows=4096, batches=8)  # of a report that is asked for


class ValueSample(NamedTuple):
    """Values at R played steps beside what came of them, in units of reward."""

    q: Float[AnyArray, " R"]  # least head of Q(s_t, a_t), as planning sees it
    soft_value: Float[AnyArray, " R"]  # V(s_t) of the online solve that chose a_t
    ret: Float[AnyArray, " R"]  # sum_{k>=t} gamma^(k-t) r_k


class SolveSample(NamedTuple):
    """Soft values of R replayed next states by four solves with the same models and the same draw of members."""

    stored: Float[AnyArray, " R"]  # the target solve as configured, from the plan kept in the replay
    cold: Float[AnyArray, " R"]  # the same samples around a plan of zeros
    fresh: Float[AnyArray, " R"]  # the last of `PATIENCE` solves as configured, one after another, from zeros
    reference: Float[AnyArray, " R"]  # see `compare_solves`
    effective_samples: Float[AnyArray, " R"]  # of the solve as configured, in [1, K]
    reference_effective_samples: Float[AnyArray, " R"]
    plan_age: Float[AnyArray, " R"]  # updates since the kept plan was refined


class ModelErrors(NamedTuple):
    """Members rolled open loop along played actions: step k is x_k = f_n(x_{k-1}, a_{t+k-1}) from x_0 = s_t.

    Differences of observations are divided by the standard deviation of the one-step change over the replay, the unit
    that models are trained in: it is the same for all steps, so that growth shows, and it exists for
    components such as a position along a track, which have no deviation of their own over time. 1 at the first step
    is as bad as to predict the mean change.
    """

    squares: Float[AnyArray, "N W S"]  # mean over windows of ((x_k - s_{t+k}) / deviation)^2, by member
    still: Float[AnyArray, "W S"]  # the same of the prediction that nothing changes, x_k = s_t
    reward_squares: Float[AnyArray, "N W"]  # mean of (r(x_{k-1}, a, x_k) - r_{t+k-1})^2, reward^2
    spread: Float[AnyArray, " R"]  # at step 1: root mean square over components of the members' sample deviation
    miss: Float[AnyArray, " R"]  # at step 1: root mean square over components of (mean of members - truth)

    @property
    def by_member(self) -> Float[np.ndarray, "N W"]:
        """Root mean square error of each member at each step."""
        return np.sqrt(np.mean(self.squares, axis=2))

    @property
    def by_step(self) -> Float[np.ndarray, " W"]:
        """Root mean square error at each step over members and components."""
        return np.sqrt(np.mean(self.squares, axis=(0, 2)))

    @property
    def still_by_step(self) -> Float[np.ndarray, " W"]:
        """Root mean square error at each step of the prediction that nothing changes."""
        return np.sqrt(np.mean(self.still, axis=1))

    @property
    def reward_by_step(self) -> Float[np.ndarray, " W"]:
        """Root mean square error of the reward at each step over members, in units of reward."""
        return np.sqrt(np.mean(self.reward_squares, axis=0))


class Diagnosis(NamedTuple):
    """Everything that was looked at."""

    values: ValueSample
    solves: SolveSample
    models: ModelErrors


class DiagnosticMetrics(NamedTuple):
    """One number each, for metrics.csv; NaN where nothing could be compared. Biases are in units of reward."""

    q_bias: float  # mean of Q(s_t, a_t) - return from t
    q_bias_std: float
    soft_value_bias: float  # mean of V(s_t) - return from t
    soft_value_bias_std: float
    target_bias: float  # mean of stored - reference
    target_bias_std: float
    value_gap_cold: float  # mean of stored - cold: what warm starting is worth
    value_gap_fresh: float  # mean of stored - fresh: below 0 where kept plans are stale
    model_error_first: float  # root mean square over members, at step 1
    model_error_last: float  # at step max(H, 1)
    model_skill_first: float  # that error over the error of "nothing changes"; above 1 the model is worse
    model_skill_last: float
    reward_error_first: float  # root mean square, in units of reward
    reward_error_last: float
    spread_ratio: float  # 1 where the truth lies like one more member; below, the ensemble is too sure of itself
    spread_correlation: float  # rank correlation of spread and miss: does the ensemble know where it errs?


DIAGNOSTIC_NAMES = DiagnosticMetrics._fields


class Diagnostics:
    """Diagnoses states of one agent; compiled functions are kept between calls."""

    def __init__(self, agent: Agent, effort: Effort | None = None) -> None:
        self._effort = effort or Effort()
        self._discount = agent.config.objective.discount
        self._steps_ahead = max(agent.config.planner.horizon, 1)
        planner = agent.planner
        self._q = jit(partial(action_values, planner))
        self._solve = jit(partial(compare_solves, planner, self._effort.reference_samples))
        self._roll = jit(partial(model_errors, planner))
        self._draw = jit(partial(_draw, self._effort.solves))
        self._deviation = jit(change_deviation)

    def __call__(self, state: AgentState, played: Sequence[Trajectory]) -> Diagnosis:
        """What `played`, the episodes of the deterministic controller, and the replay say of a state."""
        rng = np.random.default_rng(SEED)
        return Diagnosis(self._values(state.models, played, rng), self._solves(state), self._models(state, played, rng))

    def _values(self, models: Models, played: Sequence[Trajectory], rng: np.random.Generator) -> ValueSample:
        counted = [counted_steps(trajectory, self._discount) for trajectory in played]
        ret = np.concatenate(
            [discounted_returns(t.reward, self._discount)[:n] for t, n in zip(played, counted, strict=True)]
        )
        obs, action, soft_value = (
            np.concatenate([column[:n] for column, n in zip(columns, counted, strict=True)])
            for columns in ([t.obs for t in played], [t.action for t in played], [t.soft_value for t in played])
        )
        rows = _some(rng, len(ret), self._effort.steps)
        q = self._q(models, _filled(obs[rows], self._effort.steps), _filled(action[rows], self._effort.steps))
        return ValueSample(np.asarray(q, float)[: len(rows)], soft_value[rows].astype(float), ret[rows])

    def _solves(self, state: AgentState) -> SolveSample:
        parts = []
        for key in jax.random.split(jax.random.key(SEED), self._effort.batches):
            row_key, solve_key = jax.random.split(key)
            batch, start, age = self._draw(state, row_key)
            sample = np.asarray(self._solve(state.models, solve_key, batch.next_obs, start, age), float)
            counts = (np.asarray(batch.terminated) == 0) & np.isfinite(sample).all(axis=0)
            parts.append(sample[:, counts])
        return SolveSample(*np.concatenate(parts, axis=1))

    def _models(self, state: AgentState, played: Sequence[Trajectory], rng: np.random.Generator) -> ModelErrors:
        windows = draw_windows(played, rng, self._effort.windows, self._steps_ahead)
        errors = self._roll(state.models, windows, self._deviation(state.replay))
        errors = ModelErrors(*(np.asarray(part, float) for part in errors))
        begun = windows.live[:, 0]
        return errors._replace(spread=errors.spread[begun], miss=errors.miss[begun])


# ------------------------------------------------------------------- played


def discounted_returns(reward: Float[np.ndarray, " L"], discount: float) -> Float[np.ndarray, " L"]:
    """G_t = r_t + gamma G_{t+1} with G_L = 0: what was paid from every step on, nothing after the last."""
    returns, later = np.zeros(len(reward)), 0.0
    for time in reversed(range(len(reward))):
        later = float(reward[time]) + discount * later
        returns[time] = later
    return returns


def counted_steps(trajectory: Trajectory, discount: float) -> int:
    """How many first steps of an episode have a whole return.

    All of them after a termination. After a time limit those t with gamma^(L - t) <= `TAIL`: what was cut off weighs
    no more than that. Nothing is bootstrapped, as a wrong value could not be found out by itself.
    """
    length = len(trajectory.reward)
    if trajectory.terminated:
        return length
    left = length - np.arange(length)
    return int(np.sum(discount**left <= TAIL))


def action_values(
    planner: Planner, models: Models, obs: Float[Array, "R S"], action: Float[Array, "R A"]
) -> Float[Array, " R"]:
    """Q(s, a) that planning uses: the least head of the critic as it is now."""
    return models.critic.least(planner.features(models, obs), action)


# ------------------------------------------------------------------- solves


def compare_solves(
    planner: Planner,
    reference_samples: int,
    models: Models,
    key: PRNGKeyArray,
    obs: Float[Array, "R S"],
    start: Float[Array, "R T A"],
    plan_age: Float[Array, " R"],
) -> SolveSample:
    """The target solve as configured against others at the same states; members are drawn once for all of them.

    The reference draws many iid samples, `REFERENCE_ROUNDS` times, without the nominal plan among them, and starts
    where `PATIENCE` solves as configured have led from the kept plan. exp(V / lambda) is unbiased around any plan that
    other samples found, but its logarithm is too low on average, the more so the fewer the effective samples: around
    a good plan more samples count. It stays a bound from below; how good, its effective samples say.
    """
    sample_key, reference_key, scenario_key = jax.random.split(key, 3)
    config = planner.config.target_planner
    returns_fn = planner.returns_fn(config, models, models.target_critic, scenario_key, obs)
    thorough = PlannerConfig(config.horizon, reference_samples, 1, "iid", keep_nominal=False)
    starts = jnp.stack([start, jnp.zeros_like(start)])
    patient = partial(solve_again, planner.mppi(config), returns_fn, PATIENCE, sample_key)
    solved = jax.vmap(patient)(starts)
    kept, scratch = (jax.tree.map(lambda leaf, lane=lane: leaf[lane], solved) for lane in (0, 1))
    reference = solve_again(planner.mppi(thorough), returns_fn, REFERENCE_ROUNDS, reference_key, kept.plan[-1])
    return SolveSample(
        stored=kept.value[0],
        cold=scratch.value[0],
        fresh=scratch.value[-1],
        reference=reference.value[-1],
        effective_samples=kept.stats.effective_samples[0],
        reference_effective_samples=reference.stats.effective_samples[-1],
        plan_age=plan_age,
    )


def solve_again(
    mppi: MPPI, returns_fn: ReturnsFn, rounds: int, key: PRNGKeyArray, start: Float[Array, "R T A"]
) -> PlanResult:
    """`rounds` solves, each around the plan of the one before; results have a leading axis of rounds."""

    def again(plan: Array, key: PRNGKeyArray) -> tuple[Array, PlanResult]:
        result = mppi.solve(key, plan, returns_fn)
        return result.plan, result

    return jax.lax.scan(again, start, jax.random.split(key, rounds))[1]


def _draw(count: int, state: AgentState, key: PRNGKeyArray) -> tuple[Transition, Array, Array]:
    """Replayed transitions, the plans kept with them, and how many updates old these are."""
    rows = state.replay.sample_rows(key, count)
    plans, planned_at = state.replay.take_plans(rows)
    return state.replay.take(rows), plans, state.updates.astype(planned_at.dtype) - planned_at


# ------------------------------------------------------------------- models


class Windows(NamedTuple):
    """Up to W played steps on from each of R."""

    obs: Float[AnyArray, "R S"]
    action: Float[AnyArray, "R W A"]
    next_obs: Float[AnyArray, "R W S"]
    reward: Float[AnyArray, "R W"]
    live: Bool[AnyArray, "R W"]  # still within the episode; what is not is filled with zeros


def draw_windows(played: Sequence[Trajectory], rng: np.random.Generator, count: int, width: int) -> Windows:
    """`count` windows that begin anywhere in the episodes, each at most once; empty ones where steps are too few."""
    first = played[0]
    starts = [(episode, time) for episode, t in enumerate(played) for time in range(len(t.reward))]
    obs_size, action_size = first.obs.shape[1], first.action.shape[1]
    windows = Windows(
        obs=np.zeros((count, obs_size), np.float32),
        action=np.zeros((count, width, action_size), np.float32),
        next_obs=np.zeros((count, width, obs_size), np.float32),
        reward=np.zeros((count, width), np.float32),
        live=np.zeros((count, width), bool),
    )
    for row, index in enumerate(_some(rng, len(starts), count)):
        episode, time = starts[index]
        trajectory = played[episode]
        here = slice(time, time + width)
        steps = len(trajectory.reward[here])
        windows.obs[row] = trajectory.obs[time]
        windows.action[row, :steps] = trajectory.action[here]
        windows.next_obs[row, :steps] = trajectory.next_obs[here]
        windows.reward[row, :steps] = trajectory.reward[here]
        windows.live[row, :steps] = True
    return windows


def change_deviation(replay: Replay) -> Float[Array, " S"]:
    """Standard deviation of s' - s over replayed transitions, with the floor that normalisation has."""
    batch = replay.take(replay.sample_rows(jax.random.key(SEED), SCALE_ROWS))
    return jnp.maximum(jnp.std(batch.next_obs - batch.obs, axis=0), CHANGE_FLOOR)


def model_errors(planner: Planner, models: Models, windows: Windows, deviation: Float[Array, " S"]) -> ModelErrors:
    """Rolls every member along the windows; see `ModelErrors`. NaN at a step that no window reaches."""
    obs, reward = roll_members(planner, models, windows.obs, windows.action)
    truth, start = windows.next_obs[None], windows.obs[None, :, None]
    unit, live = deviation[None, None, None, :], windows.live[None, :, :, None]
    first, first_truth = obs[:, :, 0] / unit[:, :, 0], truth[0, :, 0] / unit[0, :, 0]
    return ModelErrors(
        squares=_live_mean(((obs - truth) / unit) ** 2, live),
        still=_live_mean(((start - truth) / unit) ** 2, live)[0],
        reward_squares=_live_mean((reward - windows.reward[None])[..., None] ** 2, live)[..., 0],
        spread=_root_mean_square(jnp.std(first, axis=0, ddof=1)),
        miss=_root_mean_square(jnp.mean(first, axis=0) - first_truth),
    )


def roll_members(
    planner: Planner, models: Models, obs: Float[AnyArray, "R S"], actions: Float[AnyArray, "R W A"]
) -> tuple[Float[Array, "N R W S"], Float[Array, "N R W"]]:
    """Observations and rewards that each member, kept to the end, predicts for actions played open loop."""

    def roll(member: MLP) -> tuple[Array, Array]:
        def advance(obs: Array, action: Array) -> tuple[Array, tuple[Array, Array]]:
            outcome = planner.model_step(models, member, obs, action)
            return outcome.next_obs, (outcome.next_obs, outcome.reward)

        _, (path, reward) = jax.lax.scan(advance, jnp.asarray(obs), jnp.moveaxis(jnp.asarray(actions), 1, 0))
        return jnp.moveaxis(path, 0, 1), jnp.moveaxis(reward, 0, 1)

    return jax.vmap(roll)(models.dynamics.members)


# ------------------------------------------------------------------ figures


def summarize(diagnosis: Diagnosis) -> DiagnosticMetrics:
    """The numbers for metrics.csv."""
    values, solves, models = diagnosis
    error, skill = models.by_step, models.by_step / np.maximum(models.still_by_step, 1e-12)
    reward_error = models.reward_by_step
    q_bias, q_std = mean_and_deviation(values.q - values.ret)
    soft_bias, soft_std = mean_and_deviation(values.soft_value - values.ret)
    target_bias, target_std = mean_and_deviation(solves.stored - solves.reference)
    return DiagnosticMetrics(
        q_bias=q_bias,
        q_bias_std=q_std,
        soft_value_bias=soft_bias,
        soft_value_bias_std=soft_std,
        target_bias=target_bias,
        target_bias_std=target_std,
        value_gap_cold=mean_and_deviation(solves.stored - solves.cold)[0],
        value_gap_fresh=mean_and_deviation(solves.stored - solves.fresh)[0],
        model_error_first=float(error[0]),
        model_error_last=float(error[-1]),
        model_skill_first=float(skill[0]),
        model_skill_last=float(skill[-1]),
        reward_error_first=float(reward_error[0]),
        reward_error_last=float(reward_error[-1]),
        spread_ratio=spread_ratio(models.spread, models.miss, models.squares.shape[0]),
        spread_correlation=rank_correlation(models.spread, models.miss),
    )


def mean_and_deviation(sample: Float[AnyArray, " R"]) -> tuple[float, float]:
    """Of a sample; NaN twice where it is empty."""
    return (float(np.mean(sample)), float(np.std(sample))) if len(sample) else (float("nan"), float("nan"))


def spread_ratio(spread: Float[AnyArray, " R"], miss: Float[AnyArray, " R"], members: int) -> float:
    """sqrt((1 + 1/N) mean spread^2 / mean miss^2): 1 where the truth is one more draw from where the members are.

    Members drawn like the truth with variance v have E spread^2 = v, and their mean misses the truth by
    v (1 + 1/N). NaN for a single member, which has no spread.
    """
    if members == 1 or not np.mean(miss**2) > 0:
        return float("nan")
    return float(np.sqrt((1 + 1 / members) * np.mean(spread**2) / np.mean(miss**2)))


def rank_correlation(one: Float[AnyArray, " R"], other: Float[AnyArray, " R"]) -> float:
    """Spearman's: Pearson's correlation of the ranks. NaN for less than two, or where a sample is not finite."""
    if len(one) < 2 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("nan")
    ranks = [np.argsort(np.argsort(sample)) for sample in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def reliability(
    spread: Float[AnyArray, " R"], miss: Float[AnyArray, " R"], members: int, bins: int = BINS
) -> tuple[Float[AnyArray, " J"], Float[AnyArray, " J"]]:
    """Root mean squares of sqrt(1 + 1/N) spread, and of miss, in `bins` groups of equal size by spread.

    A calibrated ensemble has both alike in every group; at most as many groups as there are samples.
    """
    groups = [group for group in np.array_split(np.argsort(spread), bins) if len(group)]
    expected = [np.sqrt((1 + 1 / members) * np.mean(spread[group] ** 2)) for group in groups]
    return np.array(expected), np.array([np.sqrt(np.mean(miss[group] ** 2)) for group in groups])


def _some(rng: np.random.Generator, among: int, count: int) -> np.ndarray:
    """`count` different numbers below `among`, or all where there are fewer."""
    return rng.permutation(among)[:count]


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """Zeros appended up to `count` rows, so that one compilation serves."""
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])


def _live_mean(values: Float[AnyArray, "N R W X"], live: Bool[AnyArray, "1 R W 1"]) -> Float[Array, "N W X"]:
    return jnp.sum(jnp.where(live, values, 0.0), axis=1) / jnp.sum(live, axis=1, dtype=values.dtype)


def _root_mean_square(rows: Float[Array, "R S"]) -> Float[Array, " R"]:
    return jnp.sqrt(jnp.mean(rows**2, axis=1))
