import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soft_mpcritic.config import CriticConfig
from soft_mpcritic.critic import BIN_SPREAD, SoftQ
from soft_mpcritic.math import hl_gauss

ROWS, FEATURES, ACTIONS = 9, 3, 2
MSE = CriticConfig(width=8, depth=1, layer_norm=False, loss="mse")
HL_GAUSS = CriticConfig(width=16, depth=1, loss="hl_gauss", bins=41, support=(-10.0, 10.0), unit="reward")


heads_of = jax.jit(SoftQ.heads)
loss_and_gradient = jax.jit(jax.value_and_grad(SoftQ.loss, has_aux=True))  # the gradient has the critic's shape


def make(config: CriticConfig, discount: float = 0.9) -> SoftQ:
    """A critic with parameters from NumPy, which takes no compilation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: SoftQ.init(key, FEATURES + ACTIONS, discount, config), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-0.4, 0.4, leaf.shape), jnp.float32), shapes)


def plain(critic: SoftQ) -> Any:
    """Optax's own name for any pytree of arrays does not admit ours."""
    return critic


@pytest.fixture
def batch() -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    sizes = ((ROWS, FEATURES), (ROWS, ACTIONS), (ROWS,))
    features, action, target = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)
    return features, jnp.clip(action, -1, 1), 5 * target


def numpy_parts(critic: SoftQ, head: int, features: jax.Array, action: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Hidden units and outputs of one head of depth 1, in double precision."""
    rows = np.concatenate([features, action], axis=1).astype(float)
    first, last = (
        (np.asarray(layer.weight[head], float), np.asarray(layer.bias[head], float)) for layer in critic.networks.layers
    )
    hidden = rows @ first[0] + first[1]
    hidden = hidden / (1 + np.exp(-hidden))
    return hidden, (hidden @ last[0] + last[1])[:, 0]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("unit", ["reward", "return"])
def test_squared_error_and_its_gradient_are_those_of_numpy(batch, heads, unit):
    critic = make(dataclasses.replace(MSE, heads=heads, unit=unit))
    features, action, target = batch
    weight = jnp.ones(ROWS).at[2].set(0.0).at[5].set(0.25)
    (loss, values), gradient = loss_and_gradient(critic, features, action, target, weight)
    size = 10.0 if unit == "return" else 1.0  # 1 / (1 - 0.9)
    share = np.asarray(weight, float) / (ROWS - 1)  # the rows that count
    expected = 0.0
    for head in range(heads):
        hidden, outputs = numpy_parts(critic, head, features, action)
        error = outputs - np.asarray(target, float) / size
        expected += np.sum(share * error**2)
        last = gradient.networks.layers[-1]
        np.testing.assert_allclose(last.bias[head, 0], np.sum(2 * share * error), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(last.weight[head, :, 0], (2 * share * error) @ hidden, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(values[head], size * outputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("heads", [1, 2])
def test_errors_are_weighed_by_the_inverse_square_of_one_and_the_value_in_units(batch, heads):
    critic = make(dataclasses.replace(MSE, heads=heads))
    features, action, _ = batch
    size = np.mean([np.abs(numpy_parts(critic, head, features, action)[1]) for head in range(heads)], axis=0)
    np.testing.assert_allclose(jax.jit(SoftQ.tolerance)(critic, features, action), (1 + size) ** -2, rtol=1e-4)


def test_weighed_by_tolerance_an_error_of_a_percent_costs_the_same_at_all_large_values():
    critic = make(MSE, discount=0.0)
    weigh = jax.jit(lambda value: _constant(critic, value).tolerance(jnp.zeros((1, 3)), jnp.zeros((1, 2))))
    costs = [float(weigh(value)[0] * (0.01 * value) ** 2) for value in (-1e4, -1e3, 1e3, 1e4)]
    np.testing.assert_allclose(costs, 1e-4, rtol=3e-3)
    assert float(weigh(0.0)[0]) == 1


def _constant(critic: SoftQ, value: float) -> SoftQ:
    """Says `value` of everything."""
    silent = jax.tree.map(jnp.zeros_like, critic)
    return eqx.tree_at(lambda c: c.networks.layers[-1].bias, silent, replace_fn=lambda bias: bias + value)


@pytest.mark.parametrize("config", [MSE, HL_GAUSS], ids=["mse", "hl_gauss"])
@pytest.mark.parametrize("junk", [-np.inf, np.inf, np.nan, 1e30])
def test_rows_of_weight_zero_do_not_count_whatever_their_target(batch, config, junk):
    critic = make(config)
    features, action, target = batch
    kept = np.array([0, 1, 4, 6])
    weight = jnp.zeros(ROWS).at[kept].set(1.0)
    spoilt = jnp.where(weight > 0, target, junk)
    (loss, _), gradient = loss_and_gradient(critic, features, action, spoilt, weight)
    rows = [np.asarray(rows)[kept] for rows in (features, action, target, weight)]
    (alone, _), alone_gradient = loss_and_gradient(critic, *rows)
    np.testing.assert_allclose(loss, alone, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, alone_gradient)


def test_a_batch_without_any_valid_row_teaches_nothing(batch):
    critic = make(MSE)
    features, action, _ = batch
    (loss, _), gradient = loss_and_gradient(critic, features, action, jnp.full(ROWS, -jnp.inf), jnp.zeros(ROWS))
    assert loss == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("discount", [0.0, 0.9, 0.99])
def test_the_unit_of_the_return_scales_values_by_the_discounts_horizon(batch, discount):
    features, action, _ = batch
    in_rewards = make(dataclasses.replace(MSE, unit="reward"), discount)
    in_returns = make(dataclasses.replace(MSE, unit="return"), discount)
    assert in_rewards.unit == 1
    np.testing.assert_allclose(
        heads_of(in_returns, features, action), heads_of(in_rewards, features, action) / (1 - discount), rtol=1e-4
    )


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("config", [MSE, HL_GAUSS], ids=["mse", "hl_gauss"])
def test_least_is_the_least_head_of_every_row(heads, config):
    critic = make(dataclasses.replace(config, heads=heads, layer_norm=False))
    critic = jax.tree.map(lambda leaf: leaf if leaf.ndim == 3 else 0 * leaf, critic)  # without biases, heads cross
    rng = np.random.default_rng(2)
    features, action = (jnp.asarray(rng.normal(size=(200, size)), jnp.float32) for size in (FEATURES, ACTIONS))
    values = np.asarray(heads_of(critic, features, action))
    assert values.shape == (heads, 200)
    assert set(values.argmin(axis=0)) == set(range(heads))  # else this would not tell the least from the first
    np.testing.assert_allclose(jax.jit(SoftQ.least)(critic, features, action), values.min(axis=0), atol=1e-6)


EDGES = jnp.linspace(-10.0, 10.0, 42)
CENTRES = np.asarray(0.5 * (EDGES[1:] + EDGES[:-1]))
SPREAD = BIN_SPREAD * 20 / 41
histogram = jax.jit(lambda values, edges: hl_gauss(values, edges, SPREAD))


def histograms_of(*values: float) -> np.ndarray:
    return np.asarray(histogram(jnp.array(values), EDGES), float)


@pytest.mark.parametrize("value", [-100.0, -10.0, -9.9, -3.21, 0.0, 0.1, 7.77, 10.0, 1e6])
def test_a_histogram_is_a_distribution(value):
    histogram = histograms_of(value)[0]
    assert histogram.shape == (41,)
    assert np.all(histogram >= 0)
    np.testing.assert_allclose(histogram.sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("value", [-8.0, -3.21, 0.0, 0.1, 0.25, 7.77])
def test_the_mean_of_a_histogram_is_its_value(value):
    histogram = histograms_of(value)[0]
    assert abs(histogram @ CENTRES - value) < 0.01 * 20 / 41  # a hundredth of a bin


@pytest.mark.parametrize(("outside", "end", "mode"), [(11.0, 10.0, 40), (1e9, 10.0, 40), (-11.0, -10.0, 0)])
def test_values_outside_the_support_go_to_its_end(outside, end, mode):
    histograms = histograms_of(outside, end)
    np.testing.assert_array_equal(histograms[0], histograms[1])
    assert histograms[0].argmax() == mode


@pytest.mark.parametrize(("unit", "values"), [("reward", (-6.3, 0.0, 4.2)), ("return", (-63.0, 0.0, 42.0))])
def test_cross_entropy_is_least_where_the_value_is_the_target(unit, values):
    critic = make(dataclasses.replace(HL_GAUSS, unit=unit))
    features, action = 3 * jnp.eye(3), jnp.zeros((3, ACTIONS))
    target, optimizer = jnp.array(values), optax.adam(0.02)

    def descend(carry, _):
        critic, state = carry
        (loss, _), gradient = loss_and_gradient(critic, features, action, target, jnp.ones(3))
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(plain(gradient), state)
        return (jax.tree.map(jnp.add, critic, change), state), loss

    start = (critic, optimizer.init(plain(critic)))
    (fitted, _), losses = jax.jit(lambda c: jax.lax.scan(descend, c, length=600))(start)
    learned = heads_of(fitted, features, action)
    bin_width = critic.unit * 20 / 41
    assert np.all(np.abs(np.asarray(learned) - np.asarray(target)) < 0.1 * bin_width)
    labels = histograms_of(*(value / critic.unit for value in values))
    entropy = -np.sum(labels * np.log(np.maximum(labels, 1e-30)), axis=1)
    np.testing.assert_allclose(losses[-1], 2 * entropy.mean(), rtol=0.01)  # the least that is possible, for two heads


def test_values_of_a_histogram_critic_stay_in_its_support(batch):
    critic = make(HL_GAUSS)
    features, action, _ = batch
    loud = dataclasses.replace(critic, networks=jax.tree.map(lambda leaf: 1e3 * leaf, critic.networks))
    assert np.all(np.abs(np.asarray(heads_of(loud, features, action))) <= 10)
