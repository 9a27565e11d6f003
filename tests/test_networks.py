import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from soft_mpcritic.networks import MLP, init_ensemble

INPUTS, OUTPUTS, WIDTH = 5, 3, 16
forward = jax.jit(MLP.__call__)


def numpy_mlp(network: MLP, rows: np.ndarray) -> np.ndarray:
    """The forward pass in double precision."""
    layers = [(np.asarray(layer.weight, float), np.asarray(layer.bias, float)) for layer in network.layers]
    norms = [(np.asarray(norm.scale, float), np.asarray(norm.shift, float)) for norm in network.norms]
    hidden = np.asarray(rows, float)
    for index, (weight, bias) in enumerate(layers[:-1]):
        hidden = hidden @ weight + bias
        if norms:
            centred = hidden - hidden.mean(axis=1, keepdims=True)
            hidden = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
            hidden = hidden * norms[index][0] + norms[index][1]
        hidden = hidden / (1 + np.exp(-hidden))
    weight, bias = layers[-1]
    return hidden @ weight + bias


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_forward_pass_is_that_of_numpy(depth, layer_norm):
    network = MLP.init(jax.random.key(0), INPUTS, OUTPUTS, width=WIDTH, depth=depth, layer_norm=layer_norm)
    # scales and shifts start as ones and zeros, which would hide that they are used
    network = jax.tree.map(
        lambda leaf: leaf + np.linspace(0, 0.1, leaf.shape[-1], dtype=np.float32).reshape([1] * (leaf.ndim - 1) + [-1]),
        network,
    )
    rows = np.random.default_rng(0).normal(size=(7, INPUTS)).astype(np.float32)
    np.testing.assert_allclose(forward(network, rows), numpy_mlp(network, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_layers_have_the_sizes_asked_for(layer_norm):
    network = MLP.init(jax.random.key(0), INPUTS, OUTPUTS, width=WIDTH, depth=2, layer_norm=layer_norm)
    assert [layer.weight.shape for layer in network.layers] == [(INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, OUTPUTS)]
    assert [layer.bias.shape for layer in network.layers] == [(WIDTH,), (WIDTH,), (OUTPUTS,)]
    assert [norm.scale.shape for norm in network.norms] == ([(WIDTH,)] * 2 if layer_norm else [])


def test_rows_do_not_depend_on_each_other():
    network = MLP.init(jax.random.key(0), INPUTS, OUTPUTS, width=WIDTH, depth=2, layer_norm=True)
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(6, INPUTS)), jnp.float32)
    others = [0, 1, 2, 4, 5]
    before, after = np.asarray(forward(network, rows)), np.asarray(forward(network, rows.at[3].add(10.0)))
    np.testing.assert_array_equal(before[others], after[others])
    assert not np.allclose(before[3], after[3])


def test_initialisation_is_uniform_within_its_bound():
    network = MLP.init(jax.random.key(0), 100, 100, width=100, depth=2)
    for layer in network.layers:
        bound = 1 / np.sqrt(layer.weight.shape[0])
        for values in (np.asarray(layer.weight), np.asarray(layer.bias)):
            uniform = stats.uniform(-bound, 2 * bound)
            assert np.all(np.abs(values) <= bound)
            assert stats.kstest(values.ravel(), uniform.cdf).pvalue > 0.001


def test_no_two_parameters_share_their_random_numbers():
    network = MLP.init(jax.random.key(0), 16, 16, width=16, depth=2)
    drawn = [np.asarray(leaf) for layer in network.layers for leaf in (*layer.weight, layer.bias)]
    for index, values in enumerate(drawn):
        assert not any(np.allclose(values, other) for other in drawn[index + 1 :])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_every_member_of_an_ensemble_is_an_mlp_of_its_own_key(layer_norm):
    key, size = jax.random.key(4), 3
    sizes = {"width": WIDTH, "depth": 2, "layer_norm": layer_norm}
    ensemble = init_ensemble(key, size, INPUTS, OUTPUTS, **sizes)
    for index, member_key in enumerate(jax.random.split(key, size)):
        member = jax.tree.map(lambda leaf, i=index: leaf[i], ensemble)
        alone = MLP.init(member_key, INPUTS, OUTPUTS, **sizes)
        assert jax.tree.structure(member) == jax.tree.structure(alone)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), member, alone)


def test_members_of_an_ensemble_differ():
    ensemble = init_ensemble(jax.random.key(0), 4, INPUTS, OUTPUTS, width=WIDTH, depth=2)
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(6, INPUTS)), jnp.float32)
    answers = np.asarray(jax.jit(jax.vmap(MLP.__call__, in_axes=(0, None)))(ensemble, rows))
    for i in range(4):
        for j in range(i):
            assert np.abs(answers[i] - answers[j]).max() > 0.01
