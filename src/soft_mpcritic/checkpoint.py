"""Checkpoints of everything: networks, targets, optimisers, scales, replay with plans, keys, counters, episodes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from soft_mpcritic.agent import AgentState
from soft_mpcritic.config import ConfigError
from soft_mpcritic.run_folder import RunFolder


class Checkpoints:
    """Rotating checkpoints of everything, each written whole or not at all."""

    def __init__(self, folder: RunFolder, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager((folder.path / "checkpoints").absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """Environment step of the newest checkpoint."""
        return self._manager.latest_step()

    @property
    def steps(self) -> set[int]:
        """Environment steps of the checkpoints that are kept."""
        return set(self._manager.all_steps())

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of later environment steps."""
        for later in sorted(self.steps):
            if later > step:
                self._manager.delete(later)

    def save(self, step: int, state: AgentState, progress: Mapping[str, Any]) -> None:
        """Writes the state and what the host knows beside it, under the number of the environment step."""
        if self.latest == step:
            return
        arrays = ocp.args.StandardSave(pack(state))
        self._manager.save(step, args=ocp.args.Composite(state=arrays, progress=ocp.args.JsonSave(dict(progress))))

    def load(self, template: AgentState, step: int | None = None) -> tuple[AgentState, dict[str, Any]]:
        """The checkpoint of `step`, or the newest, in the shape of a freshly initialised state."""
        parts = ocp.args.Composite(state=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest if step is None else step, args=parts)
        return unpack(template, restored["state"]), restored["progress"]

    def close(self) -> None:
        self._manager.close()


def pack(state: AgentState) -> dict[str, np.ndarray]:
    """Flat arrays by path; of the replay only the rows that are filled, and keys as their raw numbers."""
    filled = max(int(state.replay.size), 1)  # Orbax writes no empty array; the row is not counted as filled
    replay = dataclasses.replace(state.replay, records=state.replay.records[:filled], plans=state.replay.plans[:filled])
    plain = dataclasses.replace(state, replay=replay, key=jax.random.key_data(state.key))
    return {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(plain)}


def unpack(template: AgentState, arrays: Mapping[str, Any]) -> AgentState:
    """The inverse of `pack`; raises `ConfigError` where names or shapes do not fit the template."""
    plain = dataclasses.replace(template, key=jax.random.key_data(template.key))

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        name = _name(path)
        array = arrays.get(name)
        expected = f"{leaf.dtype}{leaf.shape} for {name}"
        if array is None:
            raise ConfigError(f"checkpoint holds nothing where {expected} is expected: it is of other settings.")
        is_buffer = name in (".replay.records", ".replay.plans")
        rows_fit = array.shape == leaf.shape or (is_buffer and array.shape[0] <= leaf.shape[0])
        fits = rows_fit and array.shape[1:] == leaf.shape[1:]
        if array.dtype != leaf.dtype or not fits:
            found = f"{array.dtype}{array.shape}"
            raise ConfigError(f"checkpoint holds {found} where {expected} is expected: it is of other settings.")
        return leaf.at[: array.shape[0]].set(array) if is_buffer else jnp.asarray(array)

    filled = jax.tree_util.tree_map_with_path(fill, plain)
    return dataclasses.replace(filled, key=jax.random.wrap_key_data(filled.key))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)
