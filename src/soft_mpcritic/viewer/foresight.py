"""The online solve laid open: its samples, where they lead, and a temperature that may change from call to call."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from soft_mpcritic.agent import Agent
from soft_mpcritic.compilation import jit
from soft_mpcritic.networks import MLP
from soft_mpcritic.planner import Models, Planner

SHOWN = 32  # samples of a solve that are followed into the future


class Setting(NamedTuple):
    """What a compiled solve is made for. Every change needs another one."""

    num_samples: int  # K
    horizon: int  # H
    worst_share: float | None = None  # members that count, the worst ones: CVaR; None: as the run was trained


class Solved(NamedTuple):
    """One solve, on the host."""

    env_action: Float[np.ndarray, " A"]  # first of the plan, in the task's units
    plan: Float[np.ndarray, "T A"]
    value: float  # reward units
    effective_samples: float
    samples: Float[np.ndarray, "C T A"]  # some of the last iteration, evenly spread over the proposal
    returns: Float[np.ndarray, " C"]


class Imagined(NamedTuple):
    """Where a plan and samples lead, by the models: observations at 0 to H steps ahead."""

    samples: Float[np.ndarray, "C T S"]  # sample k by member k mod N
    plan: Float[np.ndarray, "N T S"]  # the plan by every member
    disagreement: Float[np.ndarray, " T"]  # of the members about the plan, in deviations of an observation


class Foresight:
    """The online solve of a run under a setting, compiled ahead of time."""

    def __init__(self, agent: Agent, models: Models, setting: Setting, seed: int = 0) -> None:
        self.setting = setting
        self._models, self._seed = models, np.uint32(seed)
        self._planner = adapted(agent, setting)
        task, slots = agent.task, setting.horizon + 1
        obs = np.zeros((1, task.obs_size), np.float32)
        start = np.zeros((1, slots, task.action_size), np.float32)
        shown = np.zeros((min(SHOWN, setting.num_samples), slots, task.action_size), np.float32)
        with jax.default_matmul_precision(agent.config.training.matmul_precision):
            solve = jit(self._solve_program).lower(models, self._seed, np.uint32(0), obs, start, np.float32(1))
            imagine = jit(self._imagine_program).lower(models, obs, start[0], shown)
            self._solve, self._imagine = solve.compile(), imagine.compile()

    def solve(
        self, number: int, obs: Float[np.ndarray, " S"], start: Float[np.ndarray, "T A"], temperature: float
    ) -> Solved:
        """The `number`-th solve: another number, other samples."""
        count = np.uint32(number % 2**32)
        answer = self._solve(self._models, self._seed, count, obs[None], start[None], np.float32(temperature))
        action, plan, value, effective, samples, returns = jax.device_get(answer)
        return Solved(action, plan, float(value), float(effective), samples, returns)

    def imagine(self, obs: Float[np.ndarray, " S"], solved: Solved) -> Imagined:
        return Imagined(*jax.device_get(self._imagine(self._models, obs[None], solved.plan, solved.samples)))

    def _solve_program(
        self,
        models: Models,
        seed: UInt[Array, ""],
        number: UInt[Array, ""],
        obs: Float[Array, "1 S"],
        start: Float[Array, "1 T A"],
        temperature: Float[Array, ""],
    ) -> tuple[Array, ...]:
        """`Planner.plan_to_control`, and what it saw on the way.

        To divide all returns by x is to multiply the temperature by x, and to divide the value by x: so the temperature
        is an argument here, though the planner has it as a constant.
        """
        config, mppi = self._planner.config.planner, self._planner.mppi(self._planner.config.planner)
        sample_key, scenario_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
        returns_fn = self._planner.returns_fn(config, models, self._planner.control_critic(models), scenario_key, obs)
        warmth = temperature / mppi.temperature
        seen: list[tuple[Array, Array]] = []

        def watched(actions: Float[Array, "K B T A"]) -> Float[Array, "K B"]:
            seen.append((actions, returns_fn(actions)))
            return seen[-1][1] / warmth

        plan = start if config.warm_start else jnp.zeros_like(start)
        keys = jax.random.split(sample_key, mppi.iterations)
        result = mppi.plan_once(keys[0], plan, watched)
        for key in keys[1:]:
            result = mppi.plan_once(key, result.plan, watched)
        actions, returns = seen[-1]
        rows = np.linspace(0, len(returns) - 1, min(SHOWN, len(returns))).astype(int)
        action = self._planner.to_env(result.plan[:, 0])[0]
        effective = result.stats.effective_samples[0]
        return action, result.plan[0], warmth * result.value[0], effective, actions[rows, 0], returns[rows, 0]

    def _imagine_program(
        self, models: Models, obs: Float[Array, "1 S"], plan: Float[Array, "T A"], samples: Float[Array, "C T A"]
    ) -> tuple[Array, ...]:
        sequences = jnp.swapaxes(jnp.concatenate([samples, plan[None]]), 0, 1)  # [T, C + 1, A]
        first = jnp.broadcast_to(obs, (sequences.shape[1], obs.shape[1]))

        def lived(member: MLP) -> Float[Array, "T R S"]:
            def advance(obs: Array, action: Array) -> tuple[Array, Array]:
                next_obs = self._planner.model_step(models, member, obs, action).next_obs
                return next_obs, next_obs

            _, later = jax.lax.scan(advance, first, sequences[:-1])
            return jnp.concatenate([first[None], later])

        states = jnp.moveaxis(jax.vmap(lived)(models.dynamics.members), 2, 1)  # [N, C + 1, T, S]
        chosen = states[:, -1]
        drawn = np.arange(samples.shape[0])
        spread = jnp.std(chosen, axis=0) / models.obs_scale.deviation[None]
        return states[drawn % states.shape[0], drawn], chosen, jnp.mean(spread, axis=-1)


def adapted(agent: Agent, setting: Setting) -> Planner:
    """The run's planner under another setting. A share of the worst members asks all of them about every sample."""
    config, parts = agent.config, agent.parts
    planner = replace(config.planner, num_samples=setting.num_samples, horizon=setting.horizon)
    objective = config.objective
    if setting.worst_share is not None:
        planner = replace(planner, scenarios="all_members")
        objective = replace(objective, risk="cvar", risk_parameter=setting.worst_share)
        parts = replace(parts, risk=None)
    return Planner(agent.task, replace(config, planner=planner, objective=objective), parts)
