"""Commands that let a trained controller act: here, or wherever its file is taken."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from soft_mpcritic.checkpoint import Checkpoints, Which
from soft_mpcritic.cli.checks import check_parent, check_seed
from soft_mpcritic.config import check
from soft_mpcritic.evaluation import EVALUATION_SEED, Evaluator
from soft_mpcritic.export import export_run
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.steering import Changes, parse_changes
from soft_mpcritic.training import load_state
from soft_mpcritic.video import record_episode


@dataclass(frozen=True)
class EvaluateArgs:
    """Play deterministic episodes with the controller of a run folder."""

    run_dir: tyro.conf.Positional[Path]
    """A folder that `train` made."""
    episodes: int = 10
    seed: int = EVALUATION_SEED
    """Episode i starts from environment seed `seed + i`."""
    video: Path | None = None
    """Also film the first episode into this file (.mp4 or .gif)."""
    json: bool = False
    """Print one JSON object and nothing else."""
    set: Changes = ()
    checkpoint: Which = "newest"

    def run(self) -> None:
        """Prints the returns; with `video`, also films the first episode."""
        check(self.episodes >= 1, "episodes", "be >= 1", self.episodes, "try 10")
        check_seed(self.seed)
        if self.video is not None:
            fits = self.video.suffix in (".mp4", ".gif")
            check(fits, "video", "end in .mp4 or .gif", self.video, "rename it")
            check_parent("video", self.video)
        folder, control = RunFolder(self.run_dir), parse_changes(self.set)
        settings = folder.read_settings()
        step = Checkpoints(folder).chosen(self.checkpoint)
        agent, state = load_state(folder, settings, control, step)
        filmed = self.video is None or agent.task.has_gymnasium
        check(filmed, "video", "be of a Gymnasium task", settings.env_id, "leave it out")
        with jax.default_matmul_precision(settings.config.training.matmul_precision):
            evaluator = Evaluator(agent)
            played = evaluator(state.models, self.episodes, self.seed)
            evaluator.close()
            if self.video is not None:
                record_episode(agent, state.models, self.seed, self.video)
        returns = [episode.ret for episode in played]
        record = {
            "run_dir": str(self.run_dir),
            "env_id": settings.env_id,
            "control": control,
            "checkpoint": step,
            "seed": self.seed,
            "episodes": self.episodes,
            "return_mean": float(np.mean(returns)),
            "return_std": float(np.std(returns)),
            "return_min": min(returns),
            "return_max": max(returns),
            "length_mean": float(np.mean([episode.length for episode in played])),
            "returns": returns,
            "video": None if self.video is None else str(self.video),
        }
        print(json.dumps(record) if self.json else _in_words(record))


@dataclass(frozen=True)
class ExportArgs:
    """Write the controller of a run folder as one file that acts with JAX and NumPy alone."""

    run_dir: tyro.conf.Positional[Path]
    """A folder that `train` made."""
    file: tyro.conf.Positional[Path]
    """What to write; a controller exported earlier is replaced."""
    plants: int = 1
    """How many plants the exported controller drives at once."""
    set: Changes = ()
    checkpoint: Which = "newest"

    def run(self) -> None:
        """Writes the file and says where it is."""
        check_parent("file", self.file)
        control = parse_changes(self.set)
        manifest = export_run(self.run_dir, self.file, self.plants, control=control, checkpoint=self.checkpoint)
        print(f"{self.file}: {manifest['env_id']} for {', '.join(manifest['platforms'])}")


def _in_words(record: dict[str, Any]) -> str:
    text = (
        f"{record['env_id']}: return {record['return_mean']:.1f} +- {record['return_std']:.1f} "
        f"({record['return_min']:.1f} to {record['return_max']:.1f}) over {record['episodes']} episodes, "
        f"mean length {record['length_mean']:.0f}"
    )
    return text if record["video"] is None else f"{text}\nvideo: {record['video']}"
