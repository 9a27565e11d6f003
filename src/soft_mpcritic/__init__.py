"""Soft MPCritic: controllers that plan with what they learn, and learn from what they plan.

Everything public is here; what is not may change without notice.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soft_mpcritic.agent import Agent
    from soft_mpcritic.agent_state import AgentState
    from soft_mpcritic.config import Config, ConfigError, ObjectiveConfig, PlannerConfig, override
    from soft_mpcritic.controller import Controller
    from soft_mpcritic.envs import EnvVector, MjxDynamics, Task, make_task
    from soft_mpcritic.exported import ExportedController
    from soft_mpcritic.known import KnownModel, ModelPlanner, plan
    from soft_mpcritic.parts import Parts
    from soft_mpcritic.planner import Models, Planner
    from soft_mpcritic.planning import (
        MPPI,
        CVaRReturn,
        EntropicReturn,
        GaussianPrior,
        Scenarios,
        UniformPrior,
        antithetic,
        iid,
        mean_return,
        sobol,
        worst_return,
    )
    from soft_mpcritic.presets import preset
    from soft_mpcritic.run import Run, train
    from soft_mpcritic.types import (
        Dynamics,
        Episode,
        Experience,
        PlanResult,
        Prior,
        Reward,
        RiskMeasure,
        Sampler,
        TerminalValue,
        Termination,
        Transition,
    )

__all__ = [
    "MPPI",
    "Agent",
    "AgentState",
    "CVaRReturn",
    "Config",
    "ConfigError",
    "Controller",
    "Dynamics",
    "EntropicReturn",
    "EnvVector",
    "Episode",
    "Experience",
    "ExportedController",
    "GaussianPrior",
    "KnownModel",
    "MjxDynamics",
    "ModelPlanner",
    "Models",
    "ObjectiveConfig",
    "Parts",
    "PlanResult",
    "Planner",
    "PlannerConfig",
    "Prior",
    "Reward",
    "RiskMeasure",
    "Run",
    "Sampler",
    "Scenarios",
    "Task",
    "TerminalValue",
    "Termination",
    "Transition",
    "UniformPrior",
    "antithetic",
    "iid",
    "make_task",
    "mean_return",
    "override",
    "plan",
    "preset",
    "sobol",
    "train",
    "worst_return",
]

_PLANNING = ("MPPI", "CVaRReturn", "EntropicReturn", "GaussianPrior", "Scenarios", "UniformPrior", "antithetic", "iid")
_PROTOCOLS = ("Dynamics", "Prior", "Reward", "RiskMeasure", "Sampler", "TerminalValue", "Termination")
_HOMES = {
    "agent": ("Agent",),
    "agent_state": ("AgentState",),
    "config": ("Config", "ConfigError", "ObjectiveConfig", "PlannerConfig", "override"),
    "controller": ("Controller",),
    "envs": ("EnvVector", "MjxDynamics", "Task", "make_task"),
    "exported": ("ExportedController",),
    "known": ("KnownModel", "ModelPlanner", "plan"),
    "parts": ("Parts",),
    "planner": ("Models", "Planner"),
    "planning": (*_PLANNING, "mean_return", "sobol", "worst_return"),
    "presets": ("preset",),
    "run": ("Run", "train"),
    "types": (*_PROTOCOLS, "Episode", "Experience", "PlanResult", "Transition"),
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for, so that `exported` does without all the rest."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"soft_mpcritic.{home}"), name)
    raise AttributeError(f"module 'soft_mpcritic' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
