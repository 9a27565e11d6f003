"""Checkpoints of everything: networks, targets, optimisers, scales, replay with plans, keys, counters, episodes."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.archive import Archive, DamagedError, LayoutError, Leaf
from soft_mpcritic.config import ConfigError, check
from soft_mpcritic.files import LOG
from soft_mpcritic.run_folder import RunFolder

BUFFERS = (".replay.records", ".replay.plans")
Which = Annotated[
    Literal["newest", "best"] | int,
    tyro.conf.arg(help="Of the checkpoints that are kept: the newest, that of the best evaluation, or a step's."),
]


class Checkpoints:
    """The newest checkpoints of everything, and that of the best evaluation; each written whole or not at all."""

    def __init__(self, folder: RunFolder, keep: int = 1) -> None:
        self._run, self._folder = folder, folder.path
        self._archive = Archive((folder.path / "checkpoints").absolute(), keep)

    @property
    def latest(self) -> int | None:
        """Environment step of the newest checkpoint, sound or not."""
        return max(self._archive.steps, default=None)

    @property
    def steps(self) -> set[int]:
        """Environment steps of the checkpoints that are kept, sound or not."""
        return set(self._archive.steps)

    @property
    def best(self) -> int | None:
        """Of those that are kept, the one whose evaluation returned most; None where none was evaluated."""
        return self._best_of(self.steps)

    def is_best(self, step: int) -> bool:
        """Whether the evaluation at `step` returned no less than that of any checkpoint that is kept."""
        return self._best_of(self.steps | {step}) == step

    def _best_of(self, steps: set[int]) -> int | None:
        means = self._run.mean_returns()
        evaluated = (step for step in steps if math.isfinite(means.get(step, math.nan)))
        return max(evaluated, key=lambda step: (means[step], step), default=None)

    def sound_steps(self) -> Iterator[int]:
        """Environment steps of the checkpoints that are as they were written, from the newest on; names the others."""
        for step in reversed(self._archive.steps):
            damage = self._archive.damage(step)
            if damage is None:
                yield step
            else:
                LOG.warning("checkpoint %d of %s is damaged (%s): it is not used", step, self._folder, damage)

    def newest_sound(self) -> int | None:
        """None where there is no checkpoint; raises `ConfigError` where there are some and all are damaged."""
        step = next(self.sound_steps(), None)
        if step is None and self.steps:
            damages = "; ".join(f"{step}: {self._archive.damage(step)}" for step in self._archive.steps)
            raise ConfigError(f"no checkpoint of {self._folder} is intact ({damages}): start another run folder.")
        return step

    def go_on_from(self, step: int | None) -> None:
        """Readies the folder for a run that goes on from here: what is later, or was left half written, is put aside.

        For the process that trains alone: readers leave the folder as it is.
        """
        self._archive.tidy()
        self._archive.set_aside_after(-1 if step is None else step)

    def progress(self, step: int) -> dict[str, Any]:
        """What the host kept beside the state; raises `DamagedError`."""
        return self._archive.progress(step)

    def save(self, step: int, state: AgentState, progress: Mapping[str, Any]) -> None:
        """Writes the state and what the host knows beside it, under the number of the environment step.

        Raises `OSError` where it cannot; the checkpoints before it then stand.
        """
        if self.latest != step:
            self._archive.save(step, pack(state), progress, spared=self._best_of(self.steps | {step}))

    def chosen(self, which: Which) -> int:
        """Its environment step; raises `ConfigError` where there is no such checkpoint."""
        if not self.steps:
            raise ConfigError(f"{self._folder} has no checkpoint yet: train it first.")
        named = {"newest": self.newest_sound, "best": lambda: self.best}
        step = which if isinstance(which, int) else named[which]()
        kept = ", ".join(map(str, sorted(self.steps)))
        if step is None:
            raise ConfigError(f"no checkpoint of {self._folder} was evaluated: name one by its step ({kept}).")
        check(step in self.steps, "checkpoint", f"be newest, best or a step that is kept ({kept})", step, "name one")
        return step

    def load(self, template: AgentState, which: Which = "newest") -> tuple[AgentState, dict[str, Any]]:
        """A checkpoint in the shape of a freshly initialised state.

        Raises `ConfigError` where there is none, for one of other settings, and for one that is not intact.
        """
        chosen = self.chosen(which)
        try:
            arrays, progress = self._archive.load(chosen, layout(template))
        except DamagedError as error:
            raise ConfigError(f"checkpoint {chosen} of {self._folder} is damaged ({error}): try again.") from error
        except LayoutError as error:
            raise ConfigError(f"checkpoint {chosen} of {self._folder} {error}: it is of other settings.") from error
        return unpack(template, arrays), progress


def pack(state: AgentState) -> dict[str, np.ndarray]:
    """Flat arrays by path; of the replay only the rows that are filled, and keys as their raw numbers."""
    filled = int(state.replay.size)
    replay = dataclasses.replace(state.replay, records=state.replay.records[:filled], plans=state.replay.plans[:filled])
    return {name: np.asarray(leaf) for name, leaf in _named(dataclasses.replace(state, replay=replay))}


def unpack(template: AgentState, arrays: Mapping[str, np.ndarray]) -> AgentState:
    """The inverse of `pack` for arrays of the template's layout."""

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        array = arrays[jax.tree_util.keystr(path)]
        return jnp.asarray(array) if array.shape == leaf.shape else leaf.at[: array.shape[0]].set(array)

    filled = jax.tree_util.tree_map_with_path(fill, _plain(template))
    return dataclasses.replace(filled, key=jax.random.wrap_key_data(filled.key))


def layout(template: AgentState) -> dict[str, Leaf]:
    """What a checkpoint of such a state holds."""
    return {name: Leaf(np.dtype(leaf.dtype), leaf.shape, name in BUFFERS) for name, leaf in _named(template)}


def _named(state: AgentState) -> list[tuple[str, jax.Array]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(_plain(state))]


def _plain(state: AgentState) -> AgentState:
    return dataclasses.replace(state, key=jax.random.key_data(state.key))
