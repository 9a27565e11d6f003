"""Soft MPCritic: controllers that plan with what they learn, and learn from what they plan."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soft_mpcritic.agent import Agent, AgentState
    from soft_mpcritic.config import Config, ConfigError, preset
    from soft_mpcritic.controller import Controller
    from soft_mpcritic.exported import ExportedController
    from soft_mpcritic.planner import Models, Planner
    from soft_mpcritic.planning import MPPI, GaussianPrior, Scenarios, UniformPrior
    from soft_mpcritic.types import PlanResult, Transition

__all__ = [
    "MPPI",
    "Agent",
    "AgentState",
    "Config",
    "ConfigError",
    "Controller",
    "ExportedController",
    "GaussianPrior",
    "Models",
    "PlanResult",
    "Planner",
    "Scenarios",
    "Transition",
    "UniformPrior",
    "preset",
]

_HOMES = {
    "agent": ("Agent", "AgentState"),
    "config": ("Config", "ConfigError", "preset"),
    "controller": ("Controller",),
    "exported": ("ExportedController",),
    "planner": ("Models", "Planner"),
    "planning": ("MPPI", "GaussianPrior", "Scenarios", "UniformPrior"),
    "types": ("PlanResult", "Transition"),
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for, so that `exported` does without all the rest."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"soft_mpcritic.{home}"), name)
    raise AttributeError(f"module 'soft_mpcritic' has no attribute {name!r}")
