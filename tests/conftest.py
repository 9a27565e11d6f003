"""Strict numerics for every test: shapes checked at run time, no silent promotion of ranks or dtypes."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from inspect import ismethod
from pathlib import Path
from typing import Any

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("soft_mpcritic", "beartype.beartype")

from soft_mpcritic import compilation  # noqa: E402  (the hook sees what is imported after it)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Tests compile much and compute little: optimisation would take twice as long as it saves. Of XLA's two ways to make
# kernels, the older one, in one module, takes a third of the time; an XLA that has lost it will say so at once.
jax.config.update("jax_disable_most_optimizations", True)
QUICKLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}"

# Many tests compile the same step: the second one finds it here.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

FORGET: list[Callable[[], None]] = []  # clears what `compiled_once` keeps


def compiled_once(compiler: Callable[..., Any]) -> Callable[..., Any]:
    """`jit` that knows a function of equal settings again: most tests train the same few small agents."""

    @lru_cache(maxsize=32)
    def known(function: Callable[..., Any], settings: tuple[Any, ...], *rest: Any) -> Any:
        named, *arguments, options = rest
        return compiler(partial(function, *settings, **dict(named)), *arguments, **dict(options))

    def compile_function(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        whole = function if isinstance(function, partial) else partial(function)
        inner, settings = whole.func, whole.args
        if ismethod(inner):  # two methods are only equal if they are of the same object, whatever it equals
            inner, settings = inner.__func__, (inner.__self__, *settings)
        return known(inner, settings, frozenset(whole.keywords.items()), *arguments, frozenset(options.items()))

    FORGET.append(known.cache_clear)
    return compile_function


compilation.jit = compiled_once(compilation.jit)
compilation.jit_on_leaves = compiled_once(compilation.jit_on_leaves)

# A shell that starts the tests in the background has SIGINT ignored, and so would runs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def optimized() -> Iterator[None]:
    """For tests that compute for seconds, or look at what the compiler made."""
    switch_optimization(on=True)
    yield
    switch_optimization(on=False)


def switch_optimization(on: bool) -> None:
    jax.config.update("jax_disable_most_optimizations", not on)
    for forget in FORGET:
        forget()
