"""How this library compiles: one place for what the compiler is told."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.stages import Wrapped

COMPILER_OPTIONS = {
    # By default XLA uses half of an AVX-512 register: activations and noise are then 10 to 20 % slower.
    "xla_cpu_prefer_vector_width": 512,
    # Float32 products by Eigen, not YNNPACK: 20 % faster from 128 rows on, slower only for the 32 rows of `paper`.
    "xla_cpu_experimental_ynn_fusion_type": "",
}


def jit(function: Callable[..., Any], **options: Any) -> Wrapped:
    """`jax.jit` with this library's compiler options; `options` are those of `jax.jit`."""
    told = COMPILER_OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=told, **options)


def jit_on_leaves(function: Callable[..., Any], structure: Any) -> Wrapped:
    """Compiles (state, ..) -> (state, ..) as a function of the state's leaves, which are donated.

    JAX walks a list of arrays in C++ but a tree of modules in Python: 0.12 instead of 0.31 ms a call. Metrics, which
    are tuples of scalars, come stacked: one array to copy to the host instead of ten.
    """

    def on_leaves(leaves: list[jax.Array], *arguments: Any) -> tuple[Any, ...]:
        state, *rest = function(jax.tree.unflatten(structure, leaves), *arguments)
        return jax.tree.leaves(state), *(jnp.stack(r) if isinstance(r, tuple) else r for r in rest)

    return jit(on_leaves, donate_argnums=0)
