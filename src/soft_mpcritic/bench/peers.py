"""Other planners at the same work. Needs the extra `bench`; importing this module fails without it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytorch_mppi  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]

from soft_mpcritic.envs import Task

if TYPE_CHECKING:
    from soft_mpcritic.bench.planner import Case

TEMPERATURE, VARIANCE = 0.1, 0.1


def pytorch_mppi_solver(case: Case, task: Task) -> Callable[[], Any]:
    """One command of pytorch_mppi: `case.horizon` steps of one model and Q at the end, as in our per_step solve.

    Its interface has no action after the last model step, so that Q takes the last step's action: as many network
    evaluations as ours.
    """
    torch.manual_seed(0)
    model = _network(task.obs_size + task.action_size, task.obs_size, case.width)
    value = _network(task.obs_size + task.action_size, 1, case.width)

    def dynamics(state: Any, action: Any) -> Any:
        return state + model(torch.cat([state, action], dim=-1))

    def running_cost(state: Any, action: Any) -> Any:
        return -(state[..., 0] + 1 - 1e-3 * (action**2).sum(dim=-1))

    def terminal_cost(states: Any, actions: Any) -> Any:
        return -value(torch.cat([states[..., -1, :], actions[..., -1, :]], dim=-1))[..., 0]

    bound = torch.ones(task.action_size)
    planner = pytorch_mppi.MPPI(
        dynamics,
        running_cost,
        task.obs_size,
        VARIANCE * torch.eye(task.action_size),
        num_samples=case.samples,
        horizon=case.horizon,
        terminal_state_cost=terminal_cost,
        lambda_=TEMPERATURE,
        u_min=-bound,
        u_max=bound,
    )
    state = torch.zeros(task.obs_size)

    def solve() -> None:
        with torch.no_grad():
            planner.command(state)

    return solve


def versions() -> dict[str, str]:
    """What was compared with."""
    return {name: version(name) for name in ("pytorch-mppi", "torch")}


def _network(inputs: int, outputs: int, width: int) -> Any:
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)
    )
