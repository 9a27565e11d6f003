import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soft_mpcritic import compilation
from soft_mpcritic.exported import Plants, compiled_solve

UNKNOWN = {"xla_cpu_of_another_time": 1}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "WISHES", {**UNKNOWN, "xla_cpu_prefer_vector_width": 512})
    compilation.cpu_options.cache_clear()
    try:
        assert compilation.cpu_options() == {"xla_cpu_prefer_vector_width": 512}
        assert compilation.jit(lambda x: x + 1)(1.0) == 2
    finally:
        compilation.cpu_options.cache_clear()


def test_this_version_of_xla_knows_all_options_of_ours():
    """One that it forgot would be lost in silence, and speed with it."""
    assert compilation.cpu_options() == compilation.WISHES


@pytest.mark.parametrize("options", [{}, UNKNOWN], ids=["none", "unknown"])
def test_an_exported_solve_is_compiled_whatever_options_it_was_exported_with(options):
    def program(arrays, seed, number, obs, start):
        return start + arrays[0], jnp.sum(obs, axis=1)

    solve = compiled_solve(program, [jnp.float32(0.5)], Plants(1, 2, (-1.0,), (1.0,), 3), 0, options)
    plan, value = solve(np.uint32(0), np.ones((1, 2), np.float32), np.zeros((1, 3, 1), np.float32))
    assert np.all(plan == 0.5) and value == 2


def test_another_failure_of_the_compiler_is_told(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: no memory")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no memory"):
        compiled_solve(lambda arrays, *rest: (rest[3], rest[2]), [], Plants(1, 2, (-1.0,), (1.0,), 3), 0, {})
