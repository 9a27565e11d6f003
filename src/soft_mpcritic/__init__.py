"""Soft MPCritic: controllers that plan with what they learn, and learn from what they plan."""

from soft_mpcritic.agent import Agent, AgentState
from soft_mpcritic.config import Config, ConfigError, preset
from soft_mpcritic.planner import Models, Planner
from soft_mpcritic.planning import MPPI, GaussianPrior, Scenarios, UniformPrior
from soft_mpcritic.types import PlanResult, Transition

__all__ = [
    "MPPI",
    "Agent",
    "AgentState",
    "Config",
    "ConfigError",
    "GaussianPrior",
    "Models",
    "PlanResult",
    "Planner",
    "Scenarios",
    "Transition",
    "UniformPrior",
    "preset",
]
