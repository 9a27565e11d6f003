"""Every setting of a run, checked when built; what is usual together is in `presets`.

A setting that cannot work raises `ConfigError` with the field, the value and the remedy.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

LONGEST = 10**12  # of anything that is counted: steps, say
LARGEST = {  # of single settings; beyond, a machine computes for hours or numbers leave float32, and nothing is gained
    "variance": 1e3,
    "temperature": 1e6,
    "risk_parameter": 1e6,
    "caution": 1e3,
    "horizon": 1000,
    "num_samples": 10**6,
    "iterations": 100,
    "members": 256,
    "width": 2**14,
    "depth": 32,
    "learning_rate": 1.0,
    "batch_size": 10**6,
    "bins": 10**4,
    "updates_per_step": 1000,
    "pretrain_updates": 10**7,
    "capacity": 10**9,
    "num_envs": 10**6,
    "evaluation_episodes": 10**5,
}


class ConfigError(ValueError):
    """A setting that the user can mend; the message is one line."""


def check(condition: bool, name: str, rule: str, value: object, remedy: str) -> None:
    """Raises `ConfigError("NAME must RULE, got VALUE: REMEDY.")` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name} must {rule}, got {value}: {remedy}.")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The soft objective that the online planner, the target planner and so the critic share."""

    prior: Literal["gaussian", "uniform"] = "gaussian"
    variance: float = 0.1  # of the proposal per action component, in units of the box [-1, 1]
    temperature: float = 0.1  # lambda, in units of reward
    discount: float = 0.99  # gamma
    ratio_weights: Literal["discounted", "unit"] = "discounted"  # w_t = gamma^t, or 1
    risk: Literal["mean", "entropic", "cvar", "worst"] = "mean"  # joins the members' returns where all are asked
    risk_parameter: float = 0.5  # aversion of entropic (1 / reward), alpha of cvar
    terminations: bool = True  # does planning know that episodes end?
    caution: float = 0.0  # known ends are feared under errors of so many deviations of a change
    end_value: float = 0.0  # what an end is worth, in units of reward: less than 0 is a price on falls
    terminal_value: bool = True  # does Q stand for everything after the horizon?
    goal: Literal["known", "learned"] = "known"  # reward and termination: known where the task tells, or all learned

    def __post_init__(self) -> None:
        check_fields(self)
        check(_positive(self.variance), "variance", "be > 0", self.variance, "0.1 is the paper's")
        check(_positive(self.temperature), "temperature", "be > 0", self.temperature, "try 0.1")
        check(self.temperature >= 1e-6, "temperature", "be >= 1e-6", self.temperature, "float32 resolves no less")
        check(0 <= self.discount <= 1, "discount", "lie in [0, 1]", self.discount, "try 0.99")
        check(math.isfinite(self.caution) and self.caution >= 0, "caution", "be >= 0", self.caution, "try 0.1")
        ends_fit = -1e6 <= self.end_value <= 1e6
        check(ends_fit, "end_value", "lie in [-1e6, 1e6]", self.end_value, "0 takes ends as the task does")
        check(_positive(self.risk_parameter), "risk_parameter", "be > 0", self.risk_parameter, "try 0.5")
        alpha_fits = self.risk != "cvar" or self.risk_parameter <= 1
        check(alpha_fits, "risk_parameter", "be <= 1 for cvar", self.risk_parameter, "1 is the mean")


@dataclass(frozen=True)
class PlannerConfig:
    """How hard one solve works."""

    horizon: int = 4  # H, model steps before Q
    trace: float = 1.0  # lambda: how much of a return goes on past each of these steps; the rest is worth Q there
    num_samples: int = 128  # K
    iterations: int = 1
    sampler: Literal["iid", "antithetic", "sobol"] = "sobol"
    keep_nominal: bool = True  # is the plan itself one of the samples?
    scenarios: Literal["per_step", "per_sample", "all_members"] = "per_step"  # which members judge a sample
    width: float = 1.0  # deviation of the widest Gaussian in the proposal, in units of the prior's own
    widths: int = 1  # Gaussians in the proposal, each half as wide as the one before
    guided: bool = False  # do they stand a step up the return's gradient?
    step_size: float = 1.0  # how far does a plan move towards the mean of its samples?
    warm_start: bool = True  # start from the plan of the step before, or anew from zeros?

    def __post_init__(self) -> None:
        check_fields(self)
        check(self.horizon >= 0, "horizon", "be >= 0", self.horizon, "use 0 for soft Q-iteration without a model")
        traces = 0 <= self.trace <= 1
        check(traces, "trace", "lie in [0, 1]", self.trace, "1 asks Q at the horizon only, 0.7 also before")
        check(self.num_samples >= 1, "num_samples", "be >= 1", self.num_samples, "use 16 or more for targets")
        check(self.iterations >= 1, "iterations", "be >= 1", self.iterations, "1 is enough with a warm start")
        steps = 0 < self.step_size <= 1
        check(steps, "step_size", "lie in (0, 1]", self.step_size, "1 moves the plan all the way, as MPPI does")
        fits = 0.01 <= self.width <= 100
        check(fits, "width", "lie in [0.01, 100]", self.width, "1 is the prior's own, 0.5 half of its deviation")
        check(1 <= self.widths <= 16, "widths", "lie in [1, 16]", self.widths, "1 is a single Gaussian")


@dataclass(frozen=True)
class DynamicsConfig:
    """The ensemble of one-step models."""

    members: int = 4  # N
    width: int = 256
    depth: int = 2
    layer_norm: bool = False
    learning_rate: float = 1e-3
    weight_decay: float = 0.0  # AdamW's, of weight matrices: every update shrinks them by learning_rate weight_decay
    average_step: float = 1.0  # planning asks a running mean of the weights, which moves by so much an update
    batch_size: int = 256
    own_batches: bool = True  # does every member draw its own minibatch?
    normalize: bool = True  # inputs and changes, by slowly moving statistics

    def __post_init__(self) -> None:
        check_fields(self)
        check(self.members >= 1, "members", "be >= 1", self.members, "1 is a single model, 4 the paper's ensemble")
        steps = 0 < self.average_step <= 1
        check(steps, "average_step", "lie in (0, 1]", self.average_step, "1 is the newest weights, 0.01 their mean")
        _check_network(self.width, self.depth, self.learning_rate, self.batch_size)
        decays = math.isfinite(self.weight_decay) and 0 <= self.weight_decay * self.learning_rate < 1
        check(decays, "weight_decay", "lie in [0, 1 / learning_rate)", self.weight_decay, "try 0.3")


@dataclass(frozen=True)
class CriticConfig:
    """The soft Q-function."""

    heads: int = 2  # 1 or 2; planning and targets take the least of them
    width: int = 256
    depth: int = 2
    layer_norm: bool = True
    learning_rate: float = 3e-4
    batch_size: int = 64
    loss: Literal["mse", "hl_gauss"] = "mse"
    imagined: float = 0.0  # share of the batch that begins where plans end, by the models
    relative: bool = False  # do errors count relative to the value, where it is larger than the unit?
    bins: int = 101  # of hl_gauss
    support: tuple[float, float] = (-20.0, 20.0)  # of hl_gauss, in units
    unit: Literal["reward", "return"] = "return"  # network output 1 means `scale`, or scale / (1 - discount)
    scale: float = 1.0  # a usual reward of a step: with the temperature in its units too, learning knows no other units
    observe_change: bool = True  # does Q see how observations have changed, where they hold it?
    target_step: float = 0.01
    target_every: int = 1  # updates between steps of the target network
    control: Literal["newest", "slow", "mean"] = "newest"  # the copy that control asks: slow is the target's

    def __post_init__(self) -> None:
        check_fields(self)
        check(self.heads in (1, 2), "heads", "be 1 or 2", self.heads, "2 guards against overestimation")
        check(0 < self.target_step <= 1, "target_step", "lie in (0, 1]", self.target_step, "try 0.005")
        check(self.target_every >= 1, "target_every", "be >= 1", self.target_every, "use 1 for every update")
        imagines = 0 <= self.imagined <= 0.5
        check(imagines, "imagined", "lie in [0, 0.5]", self.imagined, "each begins at a step that was experienced")
        check(self.bins >= 2, "bins", "be >= 2", self.bins, "try 101")
        check(_positive(self.scale), "scale", "be > 0", self.scale, "use the size of a usual reward")
        pair = isinstance(self.support, tuple) and [isinstance(end, int | float) for end in self.support] == [True] * 2
        check(pair, "support", "be two numbers", repr(self.support)[:60], "try (-20, 20)")
        bounded = all(abs(end) <= LONGEST for end in self.support) and self.support[0] < self.support[1]
        check(bounded, "support", "be finite and ordered", str(self.support)[:60], "try (-20, 20)")
        _check_network(self.width, self.depth, self.learning_rate, self.batch_size)


@dataclass(frozen=True)
class TrainingConfig:
    """The loop around the agent."""

    seed_steps: int = 500  # random actions before learning starts
    seed_hold: float = 1.0  # steps for which a random action is held, on average
    updates_per_step: int = 1  # gradient updates per environment step
    pretrain_updates: int = 500  # updates at the end of the seed phase
    capacity: int = 1_000_000  # transitions that the replay holds
    num_envs: int = 1  # E
    vectorization: Literal["sync", "async"] = "sync"
    explore: Literal["sample", "mean"] = "sample"  # act by sampling the soft policy, or by the plan's mean
    explore_trace: float = 0.0  # lambda of plans that explore is this or `planner.trace`, whichever is more
    target_steps: float = 0.0  # share of steps that act by the target planner, as targets suppose
    push: float = 0.0  # exploring actions are off by at most this in the box, by the same for a while; 0: by nothing
    push_hold: float = 50.0  # steps for which they are, on average
    control_stretch: int = 0  # every other stretch of so many steps acts as deterministic control does; 0: none does
    action_repeat: int = 1  # steps of the environment under one action: together they are one step of all that counts
    observe_change: bool = False  # do observations also hold how they have changed in the last step?
    observe_position: bool = False  # may the networks see absolute positions that the task keeps for its reward?
    episode_steps: int = 0  # after which training's first episodes are cut, to start anew; 0: where the task ends them
    wrap_angles: bool = False  # do the networks see angles without bounds as cosine and sine?
    log_every: int = 500
    evaluate_every: int = 2_500
    evaluation_episodes: int = 10
    checkpoint_every: int = 5_000
    checkpoints_kept: int = 2
    tracker: Literal["none", "wandb", "mlflow"] = "none"  # a service that is shown the curves, beside TensorBoard
    backend: Literal["host", "device"] = "host"  # step Gymnasium, or functions compiled with the agent into one loop?
    simulator: Literal["mujoco", "mjx"] = "mujoco"  # on the device: MuJoCo, called from the loop, or its JAX port
    matmul_precision: Literal["highest", "high", "default"] = "highest"  # of float32 products on accelerators
    faults_tolerated: int = 0  # environments may raise, hang or answer nonsense so often; then the run stops
    step_timeout: float = 0.0  # seconds that an environment may take for a step; 0: as long as it likes
    skips_tolerated: int = 100  # updates in a row that were not finite, and so not applied: more is divergence
    divergence: Literal["rollback", "stop"] = "rollback"  # then: back to the last good checkpoint, half the step size

    def __post_init__(self) -> None:
        check_fields(self)
        check(self.seed_steps >= 0, "seed_steps", "be >= 0", self.seed_steps, "use 0 to learn from step 1")
        check(self.episode_steps >= 0, "episode_steps", "be >= 0", self.episode_steps, "use 0 for the task's own limit")
        repeats = 1 <= self.action_repeat <= 1000
        check(repeats, "action_repeat", "lie in [1, 1000]", self.action_repeat, "1 decides at every step")
        holds = math.isfinite(self.seed_hold) and self.seed_hold >= 1
        check(holds, "seed_hold", "be >= 1 steps", self.seed_hold, "1 draws anew at every step")
        traces = 0 <= self.explore_trace <= 1
        check(traces, "explore_trace", "lie in [0, 1]", self.explore_trace, "0 explores by the trace of control")
        check(0 <= self.target_steps <= 1, "target_steps", "lie in [0, 1]", self.target_steps, "try 0.5")
        check(0 <= self.push <= 2, "push", "lie in [0, 2]", self.push, "try 0.3")
        holds = math.isfinite(self.push_hold) and self.push_hold >= 1
        check(holds, "push_hold", "be >= 1 steps", self.push_hold, "try 50")
        check(self.control_stretch >= 0, "control_stretch", "be >= 0 steps", self.control_stretch, "0 means never")
        check(self.pretrain_updates >= 0, "pretrain_updates", "be >= 0", self.pretrain_updates, "use 0 for none")
        for name in ("updates_per_step", "capacity", "num_envs", "log_every", "evaluate_every", "evaluation_episodes"):
            check(getattr(self, name) >= 1, name, "be >= 1", getattr(self, name), "use a positive whole number")
        for name in ("checkpoint_every", "checkpoints_kept"):
            check(getattr(self, name) >= 1, name, "be >= 1", getattr(self, name), "use a positive whole number")
        check(self.faults_tolerated >= 0, "faults_tolerated", "be >= 0", self.faults_tolerated, "0 stops at the first")
        check(self.skips_tolerated >= 1, "skips_tolerated", "be >= 1", self.skips_tolerated, "try 100")
        waits = math.isfinite(self.step_timeout) and self.step_timeout >= 0
        check(waits, "step_timeout", "be >= 0 seconds", self.step_timeout, "0 waits for ever")
        fits = self.capacity >= self.num_envs
        check(fits, "capacity", f"be >= num_envs = {self.num_envs}", self.capacity, "raise it")


@dataclass(frozen=True)
class PartsConfig:
    """Parts of one's own, each as `module:name`; without a name, the task's or the settings' own are meant."""

    reward: str = ""  # (obs, action, next_obs) -> one number a row; in the environment's place
    termination: str = ""  # the same, in [0, 1]; beside the environment's own
    nominal: str = ""  # (obs, action) -> next_obs: physics as far as they are known
    prior: str = ""
    sampler: str = ""
    risk: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    planner: PlannerConfig = field(default_factory=lambda: PlannerConfig(iterations=2, trace=0.7))
    target_planner: PlannerConfig = field(default_factory=lambda: PlannerConfig(num_samples=16))
    # Half of the sections' width wants twice their step sizes.
    dynamics: DynamicsConfig = field(
        default_factory=lambda: DynamicsConfig(width=128, layer_norm=True, learning_rate=2e-3, average_step=0.01)
    )
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(width=128, learning_rate=6e-4, control="mean"))
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(wrap_angles=True, explore_trace=1.0))
    parts: PartsConfig = field(default_factory=PartsConfig)

    def __post_init__(self) -> None:
        undiscounted = self.objective.discount == 1 and self.critic.unit == "return"
        check(not undiscounted, "discount", 'be < 1 with critic.unit "return"', 1, 'use critic.unit "reward"')


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionary, fit for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`; raises `ConfigError` for names that no setting has."""
    sections = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    unknown = set(values) - set(sections)
    check(not unknown, "settings", f"be among {', '.join(sections)}", ", ".join(sorted(unknown)), "remove them")
    section_types = get_type_hints(Config)
    return Config(**{name: _section(section_types[name], name, values[name]) for name in values})


def override(config: Config, assignments: Mapping[str, Any]) -> Config:
    """`config` with dotted names replaced, {"planner.horizon": 2}; raises `ConfigError` for unknown names."""
    values = to_dict(config)
    for name, value in assignments.items():
        section, _, key = name.partition(".")
        known = [f"{s}.{k}" for s in values for k in values[s]]
        check(name in known, "setting", "exist", repr(name), f"settings are {', '.join(known)}")
        values[section][key] = value
    return from_dict(values)


def _section(section_type: type, name: str, values: Mapping[str, Any]) -> Any:
    known = [f.name for f in dataclasses.fields(section_type)]
    unknown = set(values) - set(known)
    check(not unknown, f"{name} settings", f"be among {', '.join(known)}", ", ".join(sorted(unknown)), "remove them")
    return section_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def check_fields(section: Any) -> None:
    """Fields hold what their types say, and nothing absurd; raises `ConfigError` otherwise."""
    for name, hint in get_type_hints(type(section)).items():
        value, choices = getattr(section, name), get_args(hint)
        if choices and all(isinstance(choice, str) for choice in choices):
            check(value in choices, name, f"be one of {', '.join(choices)}", repr(value), "choose one of these")
        elif hint in (int, float, bool):
            _check_number(name, hint, value)
        elif hint is str:
            check(isinstance(value, str), name, "be a name", repr(value)[:30], "use module:name, or nothing")


def _check_number(name: str, kind: type, value: Any) -> None:
    shown = str(value)[:30] if isinstance(value, int) else repr(value)[:30]
    if kind is bool:
        check(type(value) is bool, name, "be true or false", shown, "choose one of these")
        return
    rule, kinds = ("be a whole number", (int,)) if kind is int else ("be a number", (int, float))
    check(isinstance(value, kinds) and not isinstance(value, bool), name, rule, shown, "give one")
    largest = LARGEST.get(name, LONGEST)
    check(not value > largest, name, f"be <= {largest:g}", shown, "more was never meant: see the defaults")


def _check_network(width: int, depth: int, learning_rate: float, batch_size: int) -> None:
    check(width >= 1, "width", "be >= 1", width, "try 256")
    check(depth >= 1, "depth", "be >= 1", depth, "try 2")
    check(_positive(learning_rate), "learning_rate", "be > 0", learning_rate, "try 3e-4")
    check(batch_size >= 1, "batch_size", "be >= 1", batch_size, "try 64")


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
