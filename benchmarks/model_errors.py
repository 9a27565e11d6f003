"""How well do models of several kinds tell the steps that come next?

    python benchmarks/model_errors.py RUN_DIR --out results/model-errors/NAME.csv

The transitions of a run are relived in their order. Before a model learns from a stretch of them it is asked about it
(prequential error); then it makes an update for every step, on rows of all that came so far. So states are as new to
the model as they were to the planner that led there. Scales are those of the run's end, the same for all kinds.
"""

import csv
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from soft_mpcritic.compilation import jit
from soft_mpcritic.config import DynamicsConfig
from soft_mpcritic.dynamics import EnsembleDynamics, dynamics_loss, dynamics_optimizer
from soft_mpcritic.math import polyak
from soft_mpcritic.networks import MLP
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.training import load_state

KINDS = [(norm, decay) for norm in (False, True) for decay in (0.0, 0.3)]  # LayerNorm? weight decay
AVERAGE_STEP = 0.01
STRETCH = 100  # steps that models are asked about at once
ERRORS = ("rms", "rms_of_mean", "median", "median_of_mean", "q99", "q99_of_mean")  # of a member, of the members' mean


@dataclass(frozen=True)
class ModelErrors:
    """Relives a run with models of every kind; errors are in deviations of a usual change."""

    run_dir: tyro.conf.Positional[Path]
    out: Path
    steps: int = 10_000
    """Of the run, from its start; errors are told of the second half."""

    def run(self) -> None:
        """Writes two rows for every kind: the newest weights, and their running mean."""
        folder = RunFolder(self.run_dir)
        agent, state = load_state(folder, folder.read_settings())
        batch = state.replay.take(jnp.arange(min(self.steps, int(state.replay.position))))
        inputs = jnp.concatenate([agent.planner.features(state.models, batch.obs), batch.action], axis=-1)
        targets = state.models.change_scale.normalize(agent.learner.surprise(batch))
        training = agent.config.training
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("layer_norm", "weight_decay", "weights", *ERRORS))
            for norm, decay in KINDS:
                config = dataclasses.replace(agent.config.dynamics, layer_norm=norm, weight_decay=decay)
                relived = list(_relive(config, inputs, targets, training.seed_steps, training.pretrain_updates))
                told = relived[len(relived) // 2 :]
                for place, weights in enumerate(("newest", "mean")):
                    row = (norm, decay, weights, *_summary([errors[place] for errors in told]))
                    writer.writerow(row)
                    print(*row, flush=True)


class _Pupil:
    """An ensemble that learns, and its mean over time."""

    def __init__(self, config: DynamicsConfig, inputs: jax.Array, targets: jax.Array) -> None:
        self._config, self._inputs, self._targets = config, inputs, targets
        self._optimizer = dynamics_optimizer(config)
        sizes = inputs.shape[1], targets.shape[1]
        self.newest = self.mean = EnsembleDynamics.init(jax.random.key(0), *sizes, config).members
        self._state = self._optimizer.init(cast(optax.Params, self.newest))
        self._learn, self._errors = jit(self._updates), jit(self._row_errors)

    def learn(self, key: jax.Array, known: int, updates: int) -> None:
        """Updates on the first `known` rows."""
        keys = jax.random.split(key, updates)
        self.newest, self.mean, self._state = self._learn(self.newest, self.mean, self._state, keys, jnp.array(known))

    def errors(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Of the newest weights and of their mean: [N + 1, R], the last is that of the members' mean prediction."""
        stretch = self._inputs[rows], self._targets[rows]
        return np.asarray(self._errors(self.newest, *stretch)), np.asarray(self._errors(self.mean, *stretch))

    def _updates(self, newest: MLP, mean: MLP, state: optax.OptState, keys: jax.Array, known: jax.Array):
        shape = self._config.members, self._config.batch_size

        def update(carry, key: jax.Array):
            newest, mean, state = carry
            rows = jax.random.randint(key, shape, 0, known)
            gradient = jax.grad(lambda m: dynamics_loss(m, self._inputs[rows], self._targets[rows])[0])(newest)
            with jax.numpy_dtype_promotion("standard"):
                change, state = self._optimizer.update(gradient, state, newest)
            newest = jax.tree.map(jnp.add, newest, change)
            return (newest, polyak(mean, newest, AVERAGE_STEP), state), None

        return jax.lax.scan(update, (newest, mean, state), keys)[0]

    @staticmethod
    def _row_errors(members: MLP, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        told = jax.vmap(lambda member: member(inputs))(members)
        told = jnp.concatenate([told, jnp.mean(told, axis=0, keepdims=True)])
        return jnp.sqrt(jnp.mean((told - targets[None]) ** 2, axis=2))


def _relive(
    config: DynamicsConfig, inputs: jax.Array, targets: jax.Array, known: int, pretrain: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Errors on every stretch before anything of it is known."""
    pupil = _Pupil(config, inputs, targets)
    keys = map(partial(jax.random.fold_in, jax.random.key(1)), range(len(inputs)))
    pupil.learn(next(keys), known, max(pretrain, 1))
    pupil.mean = pupil.newest
    for start in range(known, len(inputs) - STRETCH + 1, STRETCH):
        yield pupil.errors(slice(start, start + STRETCH))
        pupil.learn(next(keys), start + STRETCH, STRETCH)


def _summary(stretches: list[np.ndarray]) -> list[float]:
    """What `ERRORS` names."""
    errors = np.concatenate(stretches, axis=1)
    groups = errors[:-1], errors[-1]
    figures = (lambda e: np.sqrt(np.mean(e**2)), np.median, lambda e: np.quantile(e, 0.99))
    return [round(float(figure(group)), 4) for figure in figures for group in groups]


if __name__ == "__main__":
    tyro.cli(ModelErrors).run()
