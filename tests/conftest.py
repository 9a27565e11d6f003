"""Strict numerics for every test: shapes checked at run time, no silent promotion of ranks or dtypes."""

import jax
from jaxtyping import install_import_hook

install_import_hook("soft_mpcritic", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
