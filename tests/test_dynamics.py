import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soft_mpcritic.config import DynamicsConfig
from soft_mpcritic.dynamics import CLIP, EnsembleDynamics, Normalizer, dynamics_loss
from soft_mpcritic.networks import MLP

FLOOR = 0.03
update = jax.jit(Normalizer.update)


def filled(rows: np.ndarray, floor: float = FLOOR) -> Normalizer:
    return update(Normalizer.init(rows.shape[1], floor), jnp.asarray(rows, jnp.float32))


@pytest.mark.parametrize("batch_sizes", [(300,), (1,) * 300, (1, 2, 297), (100, 150, 50)], ids=str)
def test_streamed_statistics_are_those_of_all_rows(batch_sizes):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3)) * [1, 5, 0.1] + [0, 10, -2]
    scale, start = Normalizer.init(3, FLOOR), 0
    for size in batch_sizes:
        scale = update(scale, jnp.asarray(rows[start : start + size], jnp.float32))
        start += size
    assert scale.count == 300
    np.testing.assert_allclose(scale.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scale.deviation, rows.std(axis=0), rtol=1e-4)


def test_a_deviation_does_not_fall_below_its_floor():
    scale = filled(np.array([[1.0, -1.0], [1.0, 1.0]]))
    np.testing.assert_allclose(scale.deviation, [FLOOR, 1.0])


def test_before_anything_was_seen_it_is_the_identity():
    scale = Normalizer.init(2, FLOOR)
    rows = jnp.array([[1e6, -3.0], [0.0, 0.001]])
    np.testing.assert_array_equal(scale.normalize(rows), rows)
    np.testing.assert_array_equal(scale.denormalize(rows), rows)


def test_normalised_rows_have_mean_zero_and_deviation_one():
    rows = np.random.default_rng(1).normal(size=(500, 2)) * [4, 0.5] + [3, -7]
    normalised = filled(rows).normalize(jnp.asarray(rows, jnp.float32))
    np.testing.assert_allclose(jnp.mean(normalised, axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(jnp.std(normalised, axis=0), 1, rtol=1e-4)


def test_normalised_rows_are_clipped():
    scale = filled(np.array([[-1.0], [1.0]]))
    rows = jnp.array([[9.9], [10.1], [-1e9], [3.0]])
    np.testing.assert_allclose(scale.normalize(rows), [[9.9], [CLIP], [-CLIP], [3.0]], rtol=1e-6)


def test_denormalize_undoes_normalize():
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(50, 3)) * [0.01, 1, 20] + [0, 1, -5], jnp.float32)
    scale = filled(np.asarray(rows))
    np.testing.assert_allclose(scale.denormalize(scale.normalize(rows)), rows, rtol=1e-4, atol=1e-4)


def test_the_nth_sample_moves_the_mean_by_no_more_than_its_share():
    rows = np.random.default_rng(3).standard_cauchy(size=(200, 2)).astype(np.float32)  # with outliers
    scale = Normalizer.init(2, FLOOR)
    for n, row in enumerate(rows, start=1):
        moved = update(scale, jnp.asarray(row[None]))
        share = np.abs(row - np.asarray(scale.mean)) / n
        assert np.all(np.abs(np.asarray(moved.mean - scale.mean)) <= share * (1 + 1e-4) + 1e-5)
        scale = moved


def test_the_mean_stays_right_far_from_zero():
    rows = 1000 + np.random.default_rng(4).normal(size=(2000, 1))
    scale = Normalizer.init(1, FLOOR)
    for row in rows.astype(np.float32):
        scale = update(scale, jnp.asarray(row[None]))
    np.testing.assert_allclose(scale.deviation, rows.std(axis=0), rtol=0.02)


def drawn(inputs: int, outputs: int, config: DynamicsConfig) -> EnsembleDynamics:
    """An ensemble with parameters from NumPy, which takes no compilation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: EnsembleDynamics.init(key, inputs, outputs, config), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-0.4, 0.4, leaf.shape), jnp.float32), shapes)


def plain(networks: MLP) -> Any:
    """Optax's own name for any pytree of arrays does not admit ours."""
    return networks


def make_problem(members: int = 3, batch: int = 6) -> tuple[EnsembleDynamics, jax.Array, jax.Array]:
    config = DynamicsConfig(members=members, width=8, depth=2)
    dynamics = drawn(4, 2, config)
    rng = np.random.default_rng(1)
    inputs, targets = (jnp.asarray(rng.normal(size=(members, batch, size)), jnp.float32) for size in (4, 2))
    return dynamics, inputs, targets


@pytest.mark.parametrize("layer_norm", [False, True])
def test_members_are_normalised_by_layers_where_asked_and_agree_at_any_scale_of_what_they_see_then(layer_norm):
    config = DynamicsConfig(members=1, width=8, depth=2, layer_norm=layer_norm)
    member = jax.tree.map(lambda leaf: leaf[0], EnsembleDynamics.init(jax.random.key(0), 3, 2, config).members)
    member = eqx.tree_at(lambda m: m.layers[0].bias, member, jnp.zeros(8))
    rows = jnp.array([[1.0, -2.0, 0.5], [0.3, 0.1, -0.9]])
    near, far = (jax.jit(MLP.__call__)(member, scale * rows) for scale in (10.0, 1000.0))
    assert np.allclose(near, far, rtol=1e-2) == layer_norm  # a state far out is no reason for a huge change


def test_loss_is_the_mean_squared_error_of_every_member():
    dynamics, inputs, targets = make_problem()
    total, errors = jax.jit(dynamics_loss)(dynamics.members, inputs, targets)
    for index in range(3):
        member = jax.tree.map(lambda leaf, i=index: np.asarray(leaf)[i], dynamics.members)
        residual = np.asarray(jax.jit(MLP.__call__)(member, inputs[index])) - np.asarray(targets[index])
        np.testing.assert_allclose(errors[index], np.mean(residual**2), rtol=1e-5)
    np.testing.assert_allclose(total, np.sum(np.asarray(errors)), rtol=1e-6)


def test_a_members_gradient_does_not_depend_on_another_members_batch():
    dynamics, inputs, targets = make_problem()
    gradient_of = jax.jit(jax.grad(lambda *arguments: dynamics_loss(*arguments)[0]))
    gradient = gradient_of(dynamics.members, inputs, targets)
    changed = gradient_of(dynamics.members, inputs.at[1].multiply(3.0), targets.at[1].add(5.0))
    leaves = [[np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (gradient, changed)]
    for before, after in zip(*leaves, strict=True):
        np.testing.assert_array_equal(before[0], after[0])
        np.testing.assert_array_equal(before[2], after[2])
        assert not np.allclose(before[1], after[1])


def test_an_ensemble_learns_a_linear_system():
    config = DynamicsConfig(members=2, width=32, depth=1, learning_rate=1e-2)
    dynamics = drawn(3, 2, config)
    system = jnp.array([[0.9, -0.2], [0.3, 0.5], [0.1, 0.7]])
    optimizer = optax.adam(config.learning_rate)

    @jax.jit
    def batch_of(key):
        inputs = jax.random.uniform(key, (2, 64, 3), minval=-1, maxval=1)
        return inputs, inputs @ system

    def descend(carry, key):
        members, state = carry
        (_, errors), gradient = jax.value_and_grad(dynamics_loss, has_aux=True)(members, *batch_of(key))
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(plain(gradient), state)
        return (jax.tree.map(jnp.add, members, change), state), errors

    start = (dynamics.members, optimizer.init(plain(dynamics.members)))
    (members, _), errors = jax.jit(lambda c: jax.lax.scan(descend, c, jax.random.split(jax.random.key(1), 600)))(start)
    _, fresh = jax.jit(dynamics_loss)(members, *batch_of(jax.random.key(2)))
    assert np.all(np.asarray(errors[0]) > 0.1)
    assert np.all(np.asarray(fresh) < 2e-3)


def test_statistics_keep_their_floor_through_updates():
    scale = dataclasses.replace(filled(np.ones((3, 1))), floor=0.5)
    assert scale.update(jnp.ones((4, 1))).deviation == 0.5
