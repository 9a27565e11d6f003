"""What users put in the place of ours: an environment, a goal, physics, a prior, a sampler, a risk measure.

In Python these are objects; in settings, and so in run folders and on the command line, they are names: `module:name`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from soft_mpcritic.config import ConfigError, PartsConfig
from soft_mpcritic.types import Dynamics, Prior, Reward, RiskMeasure, Sampler, Termination


@dataclass(frozen=True)
class Parts:
    """Parts of one's own; None where the task's or the settings' are meant."""

    env: Callable[..., Any] | None = None  # makes a Gymnasium environment; takes `render_mode` if it films
    reward: Reward | None = None  # in the environment's place
    termination: Termination | None = None  # beside the environment's own
    nominal: Dynamics | None = None  # physics as far as they are known; the rest is learned
    prior: Prior | None = None
    sampler: Sampler | None = None
    risk: RiskMeasure | None = None

    @property
    def names(self) -> PartsConfig:
        """As settings tell them; the environment is not among them, its name is the run's."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(PartsConfig)}
        return PartsConfig(**{role: "" if part is None else name_of(part) for role, part in given.items()})

    def filled(self, names: PartsConfig) -> "Parts":
        """With those that are not here imported by their names; raises `ConfigError` where that is impossible."""
        named = {field.name: getattr(names, field.name) for field in dataclasses.fields(names)}
        missing = {role: find_part(role, name) for role, name in named.items() if name and getattr(self, role) is None}
        return dataclasses.replace(self, **missing)


NOTHING_OWN = Parts()
LONGEST_NAME = 500


def name_of(part: Any) -> str:
    """`module:name`, by which a function or class at the top of a module is found again.

    What cannot be found again, an object or a function within a function, gets a name that says what it was; that of
    a dataclass has its parameters, so that a run is not gone on with by others.
    """
    if hasattr(part, "__qualname__"):
        return f"{part.__module__}:{part.__qualname__}"
    kind = type(part)
    if dataclasses.is_dataclass(part) and len(told := " ".join(repr(part).split())) <= LONGEST_NAME:
        return f"{kind.__module__}:{told}"
    return f"{kind.__module__}:{kind.__qualname__}(..)"


def find_part(role: str, name: str) -> Any:
    """The object of a name; raises `ConfigError` in one line where there is none."""
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise ConfigError(
            f"{role} {name!r} cannot be found by its name: give module:name of something at the top of a module, "
            "or hand it over in Python, to train or Run.load."
        )
    loaded = import_named(module, f"{role} {name!r}")
    if not hasattr(loaded, attribute):
        raise ConfigError(f"{role} {name!r} does not exist: module {module!r} has no {attribute}.")
    return getattr(loaded, attribute)


def import_named(module: str, what: str) -> Any:
    """The module; raises `ConfigError` in one line where it cannot be imported."""
    try:
        return import_module(module)
    except Exception as error:  # whatever a foreign module raises
        told = " ".join(str(error).split())
        raise ConfigError(f"module {module!r} of {what} cannot be imported: {told}; check PYTHONPATH.") from error


def check_traceable(
    role: str, function: Callable[..., Any], sizes: tuple[int, ...], columns: int | None = None
) -> None:
    """A function of rows must be JAX's, and answer with a number a row, or with rows of `columns`.

    `sizes` are those of its arguments' rows. Raises `ConfigError` that names function and shape.
    """
    rows = sum(sizes) + 1  # no size that could be mistaken for another
    arguments = [jax.ShapeDtypeStruct((rows, size), jnp.float32) for size in sizes]
    expected = (rows,) if columns is None else (rows, columns)
    name = name_of(function)
    try:
        hash(function)
    except TypeError as error:
        told = "what is compiled is kept by it: give a lambda that calls it"
        raise ConfigError(f"{role} {name} must be hashable, {error}; {told}.") from error
    try:
        answer = jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever a foreign function raises
        raise ConfigError(
            f"{role} {name} cannot be traced by JAX: {_first_line(error)} Write it with jax.numpy, for arrays of rows, "
            "and jnp.where instead of if."
        ) from error
    shape = getattr(answer, "shape", None)
    if shape != expected:
        shapes = ", ".join(str((rows, size)) for size in sizes)
        got = shape if shape is not None else type(answer).__name__
        raise ConfigError(f"{role} {name} must return shape {expected} for arguments of shapes {shapes}, got {got}.")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}."
