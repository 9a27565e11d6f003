"""A ring buffer of transitions that owns a plan for each of them.

The plan kept with a transition (s, a, r, s') is the start of the next solve *at s'*: the online plan shifted by one
step when the transition is stored, and the refined target plan, whole, from then on. So a visit starts exactly from
what the visit before found, its last action included.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from soft_mpcritic.types import Transition


class Replay(eqx.Module):
    """C slots; `size` of them are filled, `position` is written next. All functions return the new buffer."""

    transitions: Transition  # leading axis C
    plans: Float[Array, "C T A"]
    planned_at: Int[Array, " C"]  # update counter when the plan was last written
    position: Int[Array, ""]
    size: Int[Array, ""]

    @staticmethod
    def init(capacity: int, obs_size: int, action_size: int, slots: int) -> "Replay":
        """Empty, with all memory taken at once."""
        transitions = Transition(
            obs=jnp.zeros((capacity, obs_size)),
            action=jnp.zeros((capacity, action_size)),
            reward=jnp.zeros(capacity),
            next_obs=jnp.zeros((capacity, obs_size)),
            terminated=jnp.zeros(capacity),
        )
        return Replay(
            transitions=transitions,
            plans=jnp.zeros((capacity, slots, action_size)),
            planned_at=jnp.zeros(capacity, jnp.int32),
            position=jnp.zeros((), jnp.int32),
            size=jnp.zeros((), jnp.int32),
        )

    @property
    def capacity(self) -> int:
        return self.plans.shape[0]

    def add(self, transitions: Transition, next_plans: Float[Array, "E T A"], now: Int[Array, ""]) -> "Replay":
        """Stores E transitions and the plans to start from at their next states; overwrites the oldest."""
        rows = (self.position + jnp.arange(next_plans.shape[0])) % self.capacity
        return Replay(
            transitions=jax.tree.map(lambda kept, new: kept.at[rows].set(new), self.transitions, transitions),
            plans=self.plans.at[rows].set(next_plans),
            planned_at=self.planned_at.at[rows].set(now),
            position=(self.position + rows.shape[0]) % self.capacity,
            size=jnp.minimum(self.size + rows.shape[0], self.capacity),
        )

    def sample_rows(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Int[Array, "*shape"]:
        """Rows drawn uniformly, with replacement, among those filled."""
        return jax.random.randint(key, shape, 0, jnp.maximum(self.size, 1))

    def take(self, rows: Int[Array, " R"]) -> Transition:
        return jax.tree.map(lambda leaf: leaf[rows], self.transitions)

    def write_plans(self, rows: Int[Array, " R"], plans: Float[Array, "R T A"], now: Int[Array, ""]) -> "Replay":
        """Keeps refined plans as the starts of the next visits."""
        return dataclasses.replace(
            self, plans=self.plans.at[rows].set(plans), planned_at=self.planned_at.at[rows].set(now)
        )
