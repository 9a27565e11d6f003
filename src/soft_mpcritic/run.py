"""Training from Python, and what comes of it: a run that can be evaluated, drawn, deployed, and gone on with."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax

from soft_mpcritic.agent import Agent
from soft_mpcritic.agent_state import AgentState
from soft_mpcritic.checkpoint import Which
from soft_mpcritic.config import Config, ConfigError, check
from soft_mpcritic.console import Console
from soft_mpcritic.controller import Controller
from soft_mpcritic.device_training import train_on_device
from soft_mpcritic.envs import task_for
from soft_mpcritic.evaluation import EVALUATION_SEED, Evaluator
from soft_mpcritic.forking import fork, fork_seeds
from soft_mpcritic.parts import NOTHING_OWN, Parts, name_of
from soft_mpcritic.plotting import plot_runs
from soft_mpcritic.presets import preset
from soft_mpcritic.run_folder import RunFolder, RunSettings
from soft_mpcritic.seeds import prepare_seeds
from soft_mpcritic.steering import steered
from soft_mpcritic.trackers import check_tracker
from soft_mpcritic.training import load_state, prepare_run
from soft_mpcritic.training import train as train_on_host
from soft_mpcritic.types import Episode

OWN_SETTINGS = "own"  # the preset of settings that have no name


@dataclass(frozen=True)
class Run:
    """A run folder with what it takes to bring its controller to life."""

    path: Path
    settings: RunSettings
    control: Mapping[str, Any] = field(default_factory=dict)  # settings to control with in the place of the run's
    checkpoint: Which = "newest"

    @classmethod
    def load(
        cls,
        run_dir: str | PathLike[str],
        parts: Parts = NOTHING_OWN,
        control: Mapping[str, Any] | None = None,
        checkpoint: Which = "newest",
    ) -> "Run":
        """The run in a folder. `parts` are needed where these were handed over and cannot be imported by name.

        `control` are settings of online planner, objective and `critic.control` to act with in the place of those that
        it was trained with, {"planner.iterations": 4}. `checkpoint` is the newest, "best", that of the best evaluation,
        or the environment step of one that is kept. Raises `ConfigError` for a folder that holds no run, and for
        settings that cannot be changed.
        """
        path = Path(run_dir)
        settings = replace(RunFolder(path).read_settings(), parts=parts)
        steered(settings.config, control or {})
        return cls(path, settings, control or {}, checkpoint)

    def evaluate(self, episodes: int = 10, seed: int = EVALUATION_SEED) -> list[Episode]:
        """Deterministic episodes: their returns and lengths. Episode i starts from environment seed `seed + i`.

        Raises `ConfigError` where there is no checkpoint, or a part cannot be found by its name.
        """
        check(episodes >= 1, "episodes", "be >= 1", episodes, "try 10")
        with jax.default_matmul_precision(self.settings.config.training.matmul_precision):
            evaluator = Evaluator(self.agent)
            try:
                return evaluator(self.state.models, episodes, seed)
            finally:
                evaluator.close()

    def controller(self, plants: int = 1, deadline: float | None = None, seed: int = 0) -> Controller:
        """A function from observations to actions for `plants` plants at once; `deadline` in seconds."""
        return Controller.of(self.agent, self.state.models, plants, deadline, seed)

    def plot(self, out: str | PathLike[str] | None = None) -> Path:
        """Draws the learning curve, and says where: by default into the run folder."""
        folder = RunFolder(self.path)
        picture = folder.curve if out is None else Path(out)
        plot_runs([folder], picture)
        return picture

    @property
    def agent(self) -> Agent:
        """Task and settings as pure functions."""
        return self._loaded[0]

    @property
    def state(self) -> AgentState:
        """What was learned, by `checkpoint`."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Agent, AgentState]:
        return load_state(RunFolder(self.path), self.settings, self.control, self.checkpoint)


def train(
    env: str | Callable[..., Any],
    config: Config | str = "default",
    *,
    total_steps: int | None = None,
    seed: int = 0,
    run_dir: str | PathLike[str] | None = None,
    resume: bool = False,
    fork_from: str | PathLike[str] | None = None,
    fork_at: Which = "newest",
    parts: Parts = NOTHING_OWN,
) -> Run:
    """Trains a controller for an environment, with live progress, into a run folder.

    `env` is a name, as on the command line, or what makes a Gymnasium environment: a class, say. `config` is that of
    the settings, or the name of a preset. `parts` are a reward, a termination, a nominal model, a prior, a sampler or a
    risk measure of one's own. With `resume`, the run in `run_dir` goes on up to `total_steps`; with `fork_from`, what
    the run in that folder learned goes on under `config`, which must not change sizes, in a folder of its own, from its
    checkpoint `fork_at`: the newest, "best", or a step.
    Raises `ConfigError`, in one line that says what to do, for whatever does not fit, before anything is written.
    """
    name = _name_of_env(env)
    parts = parts if isinstance(env, str) else replace(parts, env=env)
    settings = preset(config) if isinstance(config, str) else config
    given = {role: told for role, told in vars(parts.names).items() if told}
    settings = replace(settings, parts=replace(settings.parts, **given))
    known_as = config if isinstance(config, str) else "default" if config == Config() else OWN_SETTINGS
    task = task_for(name, settings.training, parts.filled(settings.parts))
    total = task.spec.total_steps if total_steps is None else total_steps
    check(total >= 1, "total_steps", "be >= 1", total, "use some thousands")
    check(0 <= seed < 2**32, "seed", "lie in [0, 2^32)", seed, "use a smaller whole number")
    if resume and run_dir is None:
        raise ConfigError("resume must come with run_dir: name the folder.")
    path = new_run_dir(name, known_as, seed) if run_dir is None else Path(run_dir)
    asked = RunSettings(name, known_as, seed, total, settings, parts)
    if resume and RunFolder(path).exists:
        asked = replace(asked, preset=RunFolder(path).read_settings().preset)
    source = None if fork_from is None else RunFolder(Path(fork_from))
    execute(RunFolder(path), asked, resume, 1, task.note, source, fork_at)
    return Run(path, asked)


def _name_of_env(env: Any) -> str:
    """Raises `ConfigError` for an environment itself: it can be only in one place at a time."""
    if isinstance(env, str):
        return env
    if isinstance(env, gym.Env) or not callable(env):
        raise ConfigError(
            f"env must be a name or what makes an environment, got {str(env)[:60]}: hand over its class, or a function "
            "that returns it; several are made, to train, to evaluate and to film."
        )
    return name_of(env)


def execute(
    folder: RunFolder,
    asked: RunSettings,
    resume: bool = False,
    num_seeds: int = 1,
    note: str = "",
    source: RunFolder | None = None,
    fork_at: Which = "newest",
) -> dict[str, Any]:
    """Trains where the settings say, watched by a console, and reports; the summary, of several seeds the first's.

    With a `source`, `folder` becomes a fork of its checkpoint `fork_at`.
    """
    check_tracker(asked.config.training.tracker)
    on_device = asked.config.training.backend == "device"
    fits = num_seeds == 1 or on_device
    check(fits, "num_seeds", "be 1 on the host", num_seeds, "--backend device trains several at once")
    check(source is not None or fork_at == "newest", "fork_at", "come with fork_from", fork_at, "name a run")
    if source is not None:
        check(not resume, "fork_from", "come without resume", str(source.path), "resume a fork by its own run_dir")
        if num_seeds == 1:
            told = fork(source, folder, asked, fork_at)
        else:
            told = fork_seeds(source, folder, asked, num_seeds, fork_at)
        note, resume = " ".join([told, note]).strip(), True
    if on_device:
        runs = prepare_seeds(folder, asked, num_seeds, resume)
        with Console(asked.description, folder, num_seeds, note) as console:
            summary, *_ = train_on_device(folder, runs, console)
    else:
        settings = prepare_run(folder, asked, resume)
        with Console(settings.description, folder, note=note) as console:
            summary = train_on_host(folder, settings, console)
    console.report(summary)
    return summary


def new_run_dir(env_id: str, settings_name: str, seed: int) -> Path:
    """A folder of its own under runs/, named after task, settings, seed and time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in env_id)
    return Path("runs") / f"{plain}-{settings_name}-seed{seed}-{stamp}"
