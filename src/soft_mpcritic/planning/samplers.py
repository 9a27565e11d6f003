"""Where sampled sequences come from: points in (-1, 1), uniform per component, with less and less variance.

iid: independent. antithetic: each point with its mirror image. sobol: a scrambled Sobol net per problem, spread
evenly over the T A dimensions of a whole sequence. Every problem has points of its own.
"""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32
from scipy.stats import qmc


def iid(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "K B T A"]:
    """Independent points."""
    return _to_open_interval(_hash_bits(key, shape))


def antithetic(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "K B T A"]:
    """Sample k + K/2 mirrors sample k: functions odd about the plan are integrated without error.

    With an odd K, one sample stays without a partner.
    """
    num_samples, *rest = shape
    half = iid(key, ((num_samples + 1) // 2, *rest))
    return jnp.concatenate([half, -half])[:num_samples]


def sobol(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "K B T A"]:
    """The first K points of the Sobol sequence in T A dimensions, Owen-scrambled anew for every problem."""
    num_samples, problems, slots, size = shape
    seeds = jax.random.bits(key, (1, problems, slots, size))
    net = jnp.asarray(_reversed_sobol_bits(num_samples, slots * size)).reshape(num_samples, 1, slots, size)
    return _to_open_interval(_owen_scramble(jnp.broadcast_to(net, shape), jnp.broadcast_to(seeds, shape)))


SAMPLERS = {"iid": iid, "antithetic": antithetic, "sobol": sobol}


def _hash_bits(key: PRNGKeyArray, shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """Random 32-bit integers: a running number hashed with four random words, four integers at a time.

    JAX's own generator takes a third of the time of a small solve on a CPU; this one vectorises, there and under vmap.
    Source of the hash (pcg4d): Jarzynski & Olano, "Hash Functions for GPU Rendering", JCGT 9(3), 2020.
    """
    count = math.prod(shape)
    seeds = jax.random.bits(key, (4,))
    number = jax.lax.iota(jnp.uint32, -(-count // 4))
    words = [number + seeds[0], *(jnp.broadcast_to(seed, number.shape) for seed in seeds[1:])]
    x, y, z, w = (word * jnp.uint32(1664525) + jnp.uint32(1013904223) for word in words)
    for last in (False, True):
        x = x + y * w
        y = y + z * x
        z = z + x * y
        w = w + y * z
        if not last:
            x, y, z, w = (word ^ (word >> 16) for word in (x, y, z, w))
    return jnp.concatenate([x, y, z, w])[:count].reshape(shape)


def _to_open_interval(bits: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The top 23 bits as the centres of 2^23 cells of (-1, 1): symmetric, and the ends are never reached."""
    return ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0


def _reversed_sobol_bits(num_samples: int, dimensions: int) -> np.ndarray:
    """The unscrambled net as 32-bit integers, least significant bit first."""
    powers = int(np.ceil(np.log2(max(num_samples, 1))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a first point at the origin is fine: it gets scrambled
        points = qmc.Sobol(dimensions, scramble=False, bits=32).random_base2(powers)[:num_samples]
    return _reverse_bits(np.asarray(points * 2.0**32, np.uint64).astype(np.uint32))


def _owen_scramble(reversed_bits: UInt32[Array, "*shape"], seed: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Nested uniform scrambling by the Laine-Karras hash, which lets each bit depend on higher bits only.

    Source of the constants: Burley, "Practical Hash-based Owen Scrambling", JCGT 9(4), 2020.
    """
    x = reversed_bits + seed
    for multiplier in (0x6C50B47C, 0xB82F1E52, 0xC7AFE638, 0x8D22F6E6):
        x = x ^ (x * jnp.uint32(multiplier))
    return _reverse_bits(x)


def _reverse_bits(x):
    """Reverses the 32 bits of unsigned integers, NumPy's or JAX's, by swapping ever larger groups."""
    for mask, shift in ((0x55555555, 1), (0x33333333, 2), (0x0F0F0F0F, 4), (0x00FF00FF, 8), (0x0000FFFF, 16)):
        group = np.uint32(mask)
        width = np.uint32(shift)
        x = ((x >> width) & group) | ((x & group) << width)
    return x
