"""Environments and agent of one seed as one compiled loop: pure functions, which `vmap` turns into many seeds."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import METRIC_NAMES, AgentState
from soft_mpcritic.envs import DeviceVector, VectorState
from soft_mpcritic.types import AnyArray


class LoopState(NamedTuple):
    """Everything that one seed's loop changes."""

    envs: VectorState
    agent: AgentState
    action: Float[Array, "E A"]  # to be taken next, in the task's units


class Rows(NamedTuple):
    """What L steps leave for the host; on it, with a leading axis of seeds."""

    reward: Float[AnyArray, "L E"]
    done: Bool[AnyArray, "L E"]
    sound: Bool[AnyArray, "L E"]  # False: a step that is not learned from, and ends its episode
    figures: Float[AnyArray, "L F"]  # in the order of METRIC_NAMES


class Orders(NamedTuple):
    """What the host decides about L steps beforehand."""

    at_random: Bool[AnyArray, " L"]  # act at random instead of planning?
    updates: Int[AnyArray, " L"]  # gradient updates after the step
    longest: Int[AnyArray, " L"]  # steps after which an episode is cut; 0: never


@dataclass(frozen=True)
class DeviceLoop:
    """One seed's loop as pure functions; vmap makes M of them."""

    agent: Agent
    envs: DeviceVector
    length: int  # L, the most steps of one call

    def init(self, key: PRNGKeyArray) -> LoopState:
        """Fresh networks and environments, and first actions."""
        envs, obs = self.envs.reset(jax.random.fold_in(key, 2))  # 0 and 1: `split`'s, in the agent
        agent, action = self.agent.begin(self.agent.init(key), obs)
        return LoopState(envs, agent, action)

    def play(self, state: LoopState, count: Int[Array, ""], orders: Orders) -> tuple[LoopState, Rows]:
        """`count` steps of all environments, any number up to L with one compilation; the rest of the rows is empty.

        Under vmap over seeds `orders` are not to be mapped: the loop and its branches then stay what they are.
        """
        explore = self.agent.config.training.explore

        def advance(i: Array, carry: tuple[LoopState, Rows]) -> tuple[LoopState, Rows]:
            state, rows = carry
            at_random, updates, longest = (of[i] for of in orders)
            envs, experience, sound = self.envs.guarded_step(state.envs, state.action, longest)
            agent, action, figures = self.agent.step(
                state.agent, experience, updates, explore, at_random, jnp.all(sound)
            )
            row = Rows(experience.reward, experience.done, sound, figures)
            rows = jax.tree.map(lambda column, value: column.at[i].set(value), rows, row)
            return LoopState(envs, agent, action), rows

        shape = (self.length, self.envs.num_envs)
        falses = jnp.zeros(shape, bool)
        empty = Rows(jnp.zeros(shape), falses, falses, jnp.zeros((self.length, len(METRIC_NAMES))))
        return jax.lax.fori_loop(0, count, advance, (state, empty))
