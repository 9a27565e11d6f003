"""A trained run under other settings of control than it was trained with: searching more, or asking another critic."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import tyro

from soft_mpcritic.config import Config, ObjectiveConfig, PlannerConfig, check, override

LEARNED = ("discount", "goal")  # of the objective: what was learned is of these

Changes = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="NAME=VALUE", help="Control by another setting than the run's: planner.iterations=4, say."),
]


def _names(section: type, fixed: tuple[str, ...] = ()) -> list[str]:
    return [field.name for field in dataclasses.fields(section) if field.name not in fixed]


FREE = [
    *(f"planner.{name}" for name in _names(PlannerConfig)),
    *(f"objective.{name}" for name in _names(ObjectiveConfig, LEARNED)),
    "critic.control",
]


def steered(config: Config, changes: Mapping[str, Any]) -> Config:
    """The settings of a trained run with others for its control, {"planner.iterations": 4}.

    Raises `ConfigError` for a setting that what was learned depends on, and for a value that does not fit.
    """
    for name in changes:
        check(name in FREE, "what is set", f"be among {', '.join(FREE)}", repr(name), "train another run for it")
    told = override(config, changes)
    kept = told.critic.control != "mean" or config.critic.control == "mean"
    check(kept, "critic.control", 'be "newest" or "slow"', "mean, which this run did not keep", "choose one of these")
    return told


def parse_changes(told: Iterable[str]) -> dict[str, Any]:
    """`NAME=VALUE` by name; raises `ConfigError` for what is no such pair."""
    changes = {}
    for pair in told:
        name, equals, value = pair.partition("=")
        check(bool(name and equals and value), "set", "be NAME=VALUE", repr(pair), "try planner.iterations=4")
        changes[name] = _value(value)
    return changes


def _value(text: str) -> Any:
    """Numbers and true or false as JSON has them; all else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text
