"""Learning that has diverged: where to go back to, and with what steps to try again."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from soft_mpcritic.agent_state import AgentState, Health
from soft_mpcritic.archive import DamagedError
from soft_mpcritic.files import LOG
from soft_mpcritic.recording import RunRecord

SMALLER = 0.5  # factor of the step size at every return
MOST_RETURNS = 5


class DivergenceError(RuntimeError):
    """Learning diverges, and going back does not help or is not wanted; the message is one line."""


def way_back(records: Sequence[RunRecord], policy: Literal["rollback", "stop"]) -> int:
    """The newest checkpoint of all `records` that was written while updates were finite.

    One that did not help before may have been lost already: others are tried first, which are older.
    Raises `DivergenceError` where there is none, where `policy` says so, and after many returns.
    """
    record = max(records, key=lambda record: record.means.skipped_in_a_row)
    told = f"learning diverges: the last {record.means.skipped_in_a_row} updates were not finite, and not applied"
    remedy = "lower critic.learning_rate and dynamics.learning_rate in a new run"
    if policy == "stop":
        raise DivergenceError(f"{told}; {remedy}.")
    if record.rollbacks >= MOST_RETURNS:
        raise DivergenceError(f"{told}, again after {record.rollbacks} returns to a checkpoint; {remedy}.")
    good = set.intersection(*(set(_good_steps(record)) for record in records))
    if not good:
        raise DivergenceError(f"{told}, and there is no checkpoint from before; {remedy}.")
    chosen = max(good - set(record.returned_to) or good)
    record.returned_to.append(chosen)
    LOG.warning("%s; back to environment step %d with %g of the step size", told, chosen, SMALLER)
    return chosen


def smaller_steps(state: AgentState, before: Health) -> AgentState:
    """The state of a checkpoint that learning goes on from with smaller steps; what was skipped stays counted."""
    step_size = SMALLER * jnp.minimum(state.health.step_size, before.step_size)
    health = dataclasses.replace(state.health, skipped=before.skipped, step_size=step_size)
    return dataclasses.replace(state, health=health)


def _good_steps(record: RunRecord) -> list[int]:
    return [step for step in record.checkpoints.sound_steps() if _is_good(record, step)]


def _is_good(record: RunRecord, step: int) -> bool:
    try:
        return record.checkpoints.progress(step)["means"]["skipped_in_a_row"] == 0
    except (DamagedError, KeyError, TypeError):
        return False
