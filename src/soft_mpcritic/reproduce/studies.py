"""What the paper's case studies compare: every grid as a table of cells."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from soft_mpcritic.baselines import Algorithm
from soft_mpcritic.config import Config, check, override
from soft_mpcritic.presets import preset

CaseName = Literal["idp", "hopper"]
BasePreset = Literal["paper", "default", "locomotion"]


@dataclass(frozen=True)
class Cell:
    """One place in a grid: what it changes, and the figures that show it with its label in each."""

    name: str
    figures: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)  # laid over those of the case
    baseline: Algorithm | None = None  # a published algorithm in our place; it has none of our settings


@dataclass(frozen=True)
class Case:
    """A grid on one environment; the first cell is the base that the others are compared with."""

    env_id: str
    threshold: float  # a return: the table tells when runs reach it for good
    settings: Mapping[str, Any]  # of every cell, so that the base is the same whatever the preset
    cells: tuple[Cell, ...]

    def laid_over(self, asked: Mapping[str, Any]) -> "Case":
        """The grid with these settings in every cell; raises `ConfigError` for one that the grid itself decides."""
        own = {*self.settings, *(name for cell in self.cells for name in cell.settings)}
        taken = ", ".join(sorted(own & set(asked)))
        check(not taken, "set", "leave alone what the grid compares", taken, "train single runs for it")
        return replace(self, settings={**self.settings, **asked})

    def config(self, cell: Cell, preset_name: str, quick: bool) -> Config:
        """All settings of a cell's runs; `quick` has tiny networks and short intervals."""
        return override(preset(preset_name), {**(QUICK if quick else {}), **self.settings, **cell.settings})

    @property
    def figures(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(figure for cell in self.cells for figure in cell.figures))

    @property
    def quick_cells(self) -> tuple[str, ...]:
        """The base and one cell more for every figure."""
        base, *others = self.cells
        firsts = (next(cell.name for cell in others if figure in cell.figures) for figure in self.figures)
        return (base.name, *firsts)


COLD = {"target_planner.warm_start": False}  # target solves start from zeros; acting is warm-started as ever
SINGLE = {"dynamics.members": 1}

# The factors of the target solves. Not the whole product: iterations matter to the cold start, samples to the warm one.
DOUBLE_PENDULUM = Case(
    env_id="InvertedDoublePendulum-v5",
    threshold=9_300.0,  # of about 9,360: all ten episodes balance to their end
    settings={
        "dynamics.members": 4,
        "target_planner.warm_start": True,
        "target_planner.iterations": 1,
        "target_planner.num_samples": 20,
    },
    cells=(
        Cell("base", {"warm-start": "warm, ensemble", "iterations": "warm, 1 iteration", "samples": "20 samples"}),
        Cell("single", {"warm-start": "warm, single model"}, SINGLE),
        Cell("cold", {"warm-start": "cold, ensemble", "iterations": "cold, 1 iteration"}, COLD),
        Cell("cold-single", {"warm-start": "cold, single model"}, {**COLD, **SINGLE}),
        Cell("cold-iterations-5", {"iterations": "cold, 5 iterations"}, {**COLD, "target_planner.iterations": 5}),
        Cell("cold-iterations-10", {"iterations": "cold, 10 iterations"}, {**COLD, "target_planner.iterations": 10}),
        Cell("samples-10", {"samples": "10 samples"}, {"target_planner.num_samples": 10}),
        Cell("samples-50", {"samples": "50 samples"}, {"target_planner.num_samples": 50}),
    ),
)

GAUSSIAN = {"objective.prior": "gaussian"}
UNIFORM = {  # over the preset paper, this is paper-uniform
    "objective.prior": "uniform",
    "objective.variance": 0.05,
    "objective.temperature": 0.15,
    "planner.num_samples": 600,
    "target_planner.num_samples": 60,
}


def _hopper(uniform: bool) -> Case:
    """What each part is good for, by a base whose prior is `uniform` or not.

    Without Q, returns end at the horizon, which is twice as long for it; the critic goes on learning, so that the runs
    do the same work elsewhere, but nothing asks it.
    """
    prior, other = ("uniform prior", "Gaussian prior") if uniform else ("Gaussian prior", "uniform prior")
    return Case(
        env_id="Hopper-v5",
        threshold=1_000.0,  # what it is paid for merely staying upright for an episode
        settings={"dynamics.members": 4, "planner.horizon": 4, "target_planner.horizon": 4},
        cells=(
            Cell("base", {"ablations": "full", "planning-roles": "control and targets", "priors": prior}),
            Cell(
                "no-q",
                {"ablations": "without Q, H = 8"},
                {"objective.terminal_value": False, "planner.horizon": 8, "target_planner.horizon": 8},
            ),
            Cell("single", {"ablations": "single model"}, SINGLE),
            Cell("control-only", {"planning-roles": "control only"}, {"target_planner.horizon": 0}),
            Cell("targets-only", {"planning-roles": "targets only"}, {"planner.horizon": 0}),
            Cell("gaussian", {"priors": other}, GAUSSIAN) if uniform else Cell("uniform", {"priors": other}, UNIFORM),
            Cell("sac", {"priors": "SAC"}, baseline="sac"),
            Cell("ddpg", {"priors": "DDPG"}, baseline="ddpg"),
        ),
    )


def make_case(name: CaseName, preset_name: BasePreset) -> Case:
    """The grid of that name over a preset."""
    return DOUBLE_PENDULUM if name == "idp" else _hopper(preset(preset_name).objective.prior == "uniform")


QUICK_STEPS = 150
QUICK = {
    "dynamics.width": 32,
    "critic.width": 32,
    "training.seed_steps": 20,
    "training.pretrain_updates": 5,
    "training.log_every": 50,
    "training.evaluate_every": 50,
    "training.evaluation_episodes": 2,
}
