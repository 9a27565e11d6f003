"""A report on a run folder: where its value goes wrong, as numbers, in words and as a picture."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from soft_mpcritic.checkpoint import Which
from soft_mpcritic.config import ConfigError
from soft_mpcritic.diagnosis_plot import plot_diagnosis
from soft_mpcritic.diagnostics import REPORT_EFFORT, Diagnosis, Diagnostics, Effort, reliability, summarize
from soft_mpcritic.diagnostics.figures import mean_and_deviation
from soft_mpcritic.diagnostics.values import TAIL
from soft_mpcritic.evaluation import Evaluator
from soft_mpcritic.files import delivered, read_table, write_json
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.training import load_state


def diagnose_run(
    folder: RunFolder, episodes: int, out: Path, effort: Effort = REPORT_EFFORT, checkpoint: Which = "newest"
) -> dict[str, Any]:
    """Plays `episodes`, writes the picture `out` and the record beside it (.json); returns the record.

    Raises `ConfigError` for a folder without such a checkpoint, or with one from before the first step.
    """
    settings = folder.read_settings()
    agent, state = load_state(folder, settings, checkpoint=checkpoint)
    if int(state.replay.size) == 0:
        raise ConfigError(f"the checkpoint of {folder.path} holds no transition yet: train it first.")
    with jax.default_matmul_precision(settings.config.training.matmul_precision):
        evaluator = Evaluator(agent)
        try:
            played = evaluator.play(state.models, episodes)
        finally:
            evaluator.close()
        diagnosis = Diagnostics(agent, effort)(state, played)
    objective = settings.config.objective
    record = finite_or_none(
        {
            "run_dir": str(folder.path),
            "env_id": settings.env_id,
            "preset": settings.preset,
            "seed": settings.seed,
            "updates": int(state.updates),
            "transitions": int(state.replay.size),
            "discount": objective.discount,
            "temperature": objective.temperature,
            "target_samples": settings.config.target_planner.num_samples,
            "reference_samples": effort.reference_samples,
            "episodes": episodes,
            "return_mean": float(np.mean([trajectory.episode.ret for trajectory in played])),
            **numbers(diagnosis),
        }
    )
    history = read_history(folder)
    title = f"{settings.env_id}, {settings.preset}, seed {settings.seed}, after {record['updates']:,} updates"
    plot_diagnosis(diagnosis, history, title, out)
    with delivered(out.with_suffix(".json")) as file:
        write_json(file, record)
    return record


def numbers(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis as plain numbers and lists."""
    values, solves, models = diagnosis
    expected, missed = reliability(models.spread, models.miss, len(models.squares))
    by_component = np.sqrt(np.mean(models.squares, axis=0))
    return {
        "figures": summarize(diagnosis)._asdict(),
        "values": {"steps": len(values.ret), "return_from_a_step": mean_and_deviation(values.ret)[0]},
        "solves": {
            "states": len(solves.stored),
            "effective_samples": mean_and_deviation(solves.effective_samples)[0],
            "reference_effective_samples": mean_and_deviation(solves.reference_effective_samples)[0],
            "plan_age": mean_and_deviation(solves.plan_age)[0],
        },
        "models": {
            "windows": len(models.spread),
            "error_by_step": models.by_step.tolist(),
            "error_by_member_and_step": models.by_member.tolist(),
            "error_of_nothing_changes": models.still_by_step.tolist(),
            "reward_error_by_step": models.reward_by_step.tolist(),
            "error_by_component_first": by_component[0].tolist(),
            "error_by_component_last": by_component[-1].tolist(),
        },
        "calibration": {"expected_from_spread": expected.tolist(), "error": missed.tolist()},
    }


def read_history(folder: RunFolder) -> dict[str, np.ndarray]:
    """The columns of metrics.csv; NaN for what is empty, and nothing where there is no such file."""
    path = folder.path / "metrics.csv"
    rows = read_table(path) if path.is_file() else []
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else ())}


def in_words(record: dict[str, Any]) -> str:
    """What a diagnosis says, in a few lines."""
    figures, solves, models = record["figures"], record["solves"], record["models"]
    first, last = models["error_by_step"][0], models["error_by_step"][-1]
    still = models["error_of_nothing_changes"]
    ratio = figures["spread_ratio"]
    return "\n".join(
        (
            f"{record['env_id']}: return {record['return_mean']:.1f} over {record['episodes']} episodes",
            _values_in_words(record),
            f"targets: {_signed(figures['target_bias'])} +- {_plain(figures['target_bias_std'])} against "
            f"{record['reference_samples']:,} samples a solve; effective samples "
            f"{_plain(solves['effective_samples'])} of {record['target_samples']}, in the reference "
            f"{_plain(solves['reference_effective_samples'])}",
            f"kept plans: {_plain(solves['plan_age'])} updates old; {_signed(figures['value_gap_cold'])} against a "
            f"cold start, {_signed(figures['value_gap_fresh'])} against planning anew",
            f"models: error {_plain(first)} deviations of a change at step 1, {_plain(last)} at step "
            f"{len(models['error_by_step'])} (nothing changes: {_plain(still[0])}, {_plain(still[-1])}); reward off by "
            f"{_plain(figures['reward_error_first'])}, {_plain(figures['reward_error_last'])}",
            f"ensemble: spread over error {_plain(ratio)} ({_calibration_in_words(ratio)}), rank correlation "
            f"{_plain(figures['spread_correlation'])}",
        )
    )


def _values_in_words(record: dict[str, Any]) -> str:
    figures, values = record["figures"], record["values"]
    if not values["steps"]:
        return f"value: no return to compare with, time limits cut more than {TAIL:.0%} of every one off"
    return (
        f"value: Q {_signed(figures['q_bias'])} +- {_plain(figures['q_bias_std'])} and V "
        f"{_signed(figures['soft_value_bias'])} +- {_plain(figures['soft_value_bias_std'])} against returns of "
        f"{_plain(values['return_from_a_step'])} on average ({values['steps']:,} steps; the value holds the price of "
        "control, the return does not)"
    )


def _calibration_in_words(ratio: float | None) -> str:
    if ratio is None:
        return "no spread to compare"
    if ratio < 0.8:
        return "too sure of itself"
    return "too unsure of itself" if ratio > 1.25 else "calibrated"


def _plain(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.3g}"


def _signed(number: float | None) -> str:
    return "unknown" if number is None else f"{number:+.3g}"


def finite_or_none(value: Any) -> Any:
    """`value` with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: finite_or_none(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite_or_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
