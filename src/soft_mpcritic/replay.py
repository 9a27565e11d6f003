"""A ring buffer of transitions that owns a plan for each of them.

The plan kept with a transition (s, a, r, s') is the start of the next solve *at s'*: the online plan shifted by one
step when the transition is stored, and the refined target plan, whole, from then on. So a visit starts exactly from
what the visit before found, its last action included.

A transition is one row of one matrix, and a plan with its time stamp one row of another: a draw is two gathers, and
the compiler updates both buffers in place (five separate arrays were copied, a million rows each, on every step).
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from soft_mpcritic.types import Transition


class Replay(eqx.Module):
    """C slots; `size` of them are filled, `position` is written next. All functions return the new buffer."""

    records: Float[Array, "C W"]  # obs | action | next_obs | reward | terminated
    plans: Float[Array, "C P"]  # T A action components | updates done when the plan was last written
    position: Int[Array, ""]
    size: Int[Array, ""]
    obs_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    @staticmethod
    def init(capacity: int, obs_size: int, action_size: int, slots: int) -> "Replay":
        """Empty, with all memory taken at once."""
        return Replay(
            records=jnp.zeros((capacity, 2 * obs_size + action_size + 2)),
            plans=jnp.zeros((capacity, slots * action_size + 1)),
            position=jnp.zeros((), jnp.int32),
            size=jnp.zeros((), jnp.int32),
            obs_size=obs_size,
            action_size=action_size,
        )

    @property
    def capacity(self) -> int:
        return self.records.shape[0]

    def add(
        self,
        transitions: Transition,
        next_plans: Float[Array, "E T A"],
        now: Int[Array, ""],
        keep: Bool[Array, ""] | None = None,
    ) -> "Replay":
        """Stores E transitions and the plans to start from at their next states; overwrites the oldest.

        With `keep` false, all stays as it is: of a step that nobody can learn from. The rows are written back as they
        were, since a choice between two buffers would copy both.
        """
        rows = (self.position + jnp.arange(next_plans.shape[0])) % self.capacity
        records, plans, count = _pack(transitions), _stamped(next_plans, now), jnp.array(rows.shape[0])
        if keep is not None:
            records = jnp.where(keep, records, self.records[rows])
            plans = jnp.where(keep, plans, self.plans[rows])
            count = jnp.where(keep, count, 0)
        return dataclasses.replace(
            self,
            records=_set_rows(self.records, rows, records),
            plans=_set_rows(self.plans, rows, plans),
            position=(self.position + count) % self.capacity,
            size=jnp.minimum(self.size + count, self.capacity),
        )

    def sample_rows(self, key: PRNGKeyArray, count: int) -> Int[Array, " R"]:
        """Rows drawn uniformly, with replacement, among those filled."""
        return jax.random.randint(key, (count,), 0, jnp.maximum(self.size, 1))

    def take(self, rows: Int[Array, " R"]) -> Transition:
        """The transitions at `rows`."""
        ends = (self.obs_size, self.obs_size + self.action_size, 2 * self.obs_size + self.action_size)
        obs, action, next_obs, rest = jnp.split(self.records[rows], ends, axis=-1)
        return Transition(obs, action, rest[:, 0], next_obs, rest[:, 1])

    def take_plans(self, rows: Int[Array, " R"]) -> tuple[Float[Array, "R T A"], Float[Array, " R"]]:
        """The plans kept at `rows` and the update counts at which they were written."""
        plans = self.plans[rows]
        return plans[:, :-1].reshape(rows.shape[0], -1, self.action_size), plans[:, -1]

    def fit_horizon(self, slots: int) -> "Replay":
        """With plans cut, or filled up with zeros, to another number of action slots."""
        before, width = self.plans.shape[1] - 1, slots * self.action_size
        if width == before:
            return self  # the buffer may fill the memory: no copy that is not needed
        actions, stamps = self.plans[:, : min(before, width)], self.plans[:, -1:]
        missing = jnp.zeros((self.capacity, max(width - before, 0)))
        return dataclasses.replace(self, plans=jnp.concatenate([actions, missing, stamps], axis=-1))

    def write_plans(self, rows: Int[Array, " R"], plans: Float[Array, "R T A"], now: Int[Array, ""]) -> "Replay":
        """Keeps plans, refined after `now` updates, as the starts of the next visits."""
        return dataclasses.replace(self, plans=_set_rows(self.plans, rows, _stamped(plans, now)))


def _pack(transitions: Transition) -> Float[Array, "R W"]:
    t = transitions
    return jnp.concatenate([t.obs, t.action, t.next_obs, t.reward[:, None], t.terminated[:, None]], axis=-1)


def _stamped(plans: Float[Array, "R T A"], now: Int[Array, ""]) -> Float[Array, "R P"]:
    stamps = jnp.broadcast_to(now.astype(plans.dtype), (plans.shape[0], 1))
    return jnp.concatenate([plans.reshape(plans.shape[0], -1), stamps], axis=-1)


def _set_rows(matrix: Float[Array, "C W"], rows: Int[Array, " R"], values: Float[Array, "R W"]) -> Float[Array, "C W"]:
    return matrix.at[rows].set(values, mode="promise_in_bounds")
