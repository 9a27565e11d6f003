"""Strict numerics for every test: shapes checked at run time, no silent promotion of ranks or dtypes."""

import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("soft_mpcritic", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Tests compile much and compute little: optimisation would take twice as long as it saves.
jax.config.update("jax_disable_most_optimizations", True)

# Many tests compile the same step: the second one finds it here.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# A shell that starts the tests in the background has SIGINT ignored, and so would runs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def optimized() -> Iterator[None]:
    """For tests that compute for seconds, or look at what the compiler made."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
