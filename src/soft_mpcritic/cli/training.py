"""Commands that train: ours, and baselines to compare with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from soft_mpcritic.baselines import (
    BASELINE_PACKAGES,
    Algorithm,
    Baseline,
    SbxLearner,
    baseline_task,
    train_baseline,
)
from soft_mpcritic.checkpoint import Which
from soft_mpcritic.cli.checks import check_seed
from soft_mpcritic.config import Config, TrainingConfig, check, override
from soft_mpcritic.console import Console
from soft_mpcritic.envs import task_for
from soft_mpcritic.parts import NOTHING_OWN
from soft_mpcritic.run import execute, new_run_dir
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.seeds import seed_folders


@dataclass(frozen=True)
class TrainArgs:
    """Train a controller on a task, into a run folder."""

    env_id: tyro.conf.Positional[str] = "InvertedDoublePendulum-v5"
    """Gymnasium's id, of any task with Box spaces; module:id or module:name of a class; dm_control/DOMAIN-TASK; or
    CartPoleSwingUp on the device. Reward and termination that are not known here are learned."""
    preset: str = "default"
    """Settings to start from: default, locomotion, paper or paper-uniform. Each one below can be changed on top."""
    seed: int = 0
    """Of networks, planner and environments."""
    total_steps: int | None = None
    """Environment steps to train for; by default a budget that suffices for the task."""
    run_dir: Path | None = None
    """Where everything is kept; by default a new folder under runs/."""
    resume: bool = False
    """Go on with the run in run_dir from its newest checkpoint, or start it if there is none."""
    fork_from: Path | None = None
    """A run to go on from in a folder of its own, with the settings that are told here in the place of its own."""
    fork_at: Which = "newest"
    backend: str | None = None
    """Short for training.backend: host, or device for environment and agent in one compiled loop."""
    num_envs: int | None = None
    """Short for training.num-envs: environments that are stepped together."""
    num_seeds: int = 1
    """Runs that are trained side by side on the device, from `seed` on: run_dir then holds seed0, seed1, .."""
    matmul_precision: str | None = None
    """Short for training.matmul-precision: highest is float32, high and default may be less on accelerators."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> None:
        """Trains, with live progress, and says where the results are."""
        config = self._laid_over()
        task = task_for(self.env_id, config.training, NOTHING_OWN.filled(config.parts))
        total = task.spec.total_steps if self.total_steps is None else self.total_steps
        check(total >= 1, "total_steps", "be >= 1", total, "use some thousands")
        check(self.num_seeds >= 1, "num_seeds", "be >= 1", self.num_seeds, "1 is a single run")
        check_seed(self.seed + self.num_seeds - 1 if self.seed >= 0 else self.seed)
        check(not self.resume or self.run_dir is not None, "resume", "come with --run-dir", "none", "name the folder")
        folder = RunFolder(self.run_dir or new_run_dir(self.env_id, self.preset, self.seed))
        asked = RunSettings(self.env_id, self.preset, self.seed, total, config)
        source = None if self.fork_from is None else RunFolder(self.fork_from)
        execute(folder, asked, self.resume, self.num_seeds, task.note, source, self.fork_at)

    def _laid_over(self) -> Config:
        """The settings with the short options laid over them."""
        short = {"backend": self.backend, "num_envs": self.num_envs, "matmul_precision": self.matmul_precision}
        return override(self.config, {f"training.{name}": value for name, value in short.items() if value is not None})


@dataclass(frozen=True)
class BaselineArgs:
    """Train a published model-free algorithm on a task, evaluated as ours are, into a run folder for `plot`."""

    algorithm: tyro.conf.Positional[Algorithm]
    env_id: tyro.conf.Positional[str]
    """Id of a task of Gymnasium; its standard observation is what the algorithm sees."""
    seed: int = 0
    """Of networks, exploration and environment."""
    total_steps: int | None = None
    """Environment steps to train for; by default the task's budget."""
    run_dir: Path | None = None
    """Where everything is kept; by default a new folder under runs/."""
    learning_starts: int = 100
    """Random steps before the first update: 100 is sbx's, SAC's authors took up to 10,000."""
    evaluate_every: int = 2_500
    evaluation_episodes: int = 10

    def run(self) -> None:
        """Trains, with live progress, and says where the results are."""
        check_seed(self.seed)
        training = TrainingConfig(evaluate_every=self.evaluate_every, evaluation_episodes=self.evaluation_episodes)
        task = baseline_task(self.env_id)
        total = task.spec.total_steps if self.total_steps is None else self.total_steps
        check(total >= 1, "total_steps", "be >= 1", total, "use some thousands")
        baseline = Baseline(self.algorithm, self.env_id, self.seed, total, self.learning_starts, training)
        folder = RunFolder(self.run_dir or new_run_dir(self.env_id, self.algorithm, self.seed))
        check(not seed_folders(folder), "run_dir", "be a new folder", folder.path, "baselines cannot be resumed")
        learner = SbxLearner(baseline, task)
        folder.create(baseline.description, BASELINE_PACKAGES)
        with Console(baseline.description, folder) as console:
            summary = train_baseline(folder, baseline, task, learner, console)
        console.report(summary)
