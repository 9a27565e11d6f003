"""What is in a run folder, how it was made and how good it is; and in what two of them differ."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from soft_mpcritic.archive import STATE, Archive
from soft_mpcritic.config import to_dict
from soft_mpcritic.files import read_table
from soft_mpcritic.presets import PRESETS, preset
from soft_mpcritic.run_folder import OURS, RunDescription, RunFolder

MADE = ("version", "commit", "platform", "packages")
TIMES = ("wall_seconds", "steps_per_second")
TABLES = ("metrics.csv", "evaluations.csv")
TROUBLES = ("faults", "skipped_updates", "rollbacks")


def inspect_run(folder: RunFolder) -> dict[str, Any]:
    """All there is to say of a run folder, fit for JSON; raises `ConfigError` for one that is none."""
    run, record = folder.read_description(), folder.read_record()
    earlier = record.get("earlier")
    tables = {name: _rows(folder.path / name) for name in TABLES}
    last = tables["metrics.csv"][-1] if tables["metrics.csv"] else {}
    return {
        "run_dir": str(folder.path),
        "env_id": run.env_id,
        "algorithm": run.algorithm,
        "preset": run.preset,
        "seed": run.seed,
        "total_steps": run.total_steps,
        "env_step": int(last.get("env_step", 0)),
        "wall_seconds": float(last.get("wall_seconds", 0.0)),
        "changed_settings": changed_settings(run),
        "made_with": {name: record.get(name) for name in MADE},
        "made_otherwise_before": len(earlier) if isinstance(earlier, list) else 0,
        "forks": folder.forks(),
        "rows": {name: len(rows) for name, rows in tables.items()},
        "checkpoints": _checkpoints(folder),
        "bytes": sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file()),
        "evaluations": _evaluations(folder.mean_returns()),
        "troubles": {name: int(last.get(name) or 0) for name in TROUBLES},
    }


def changed_settings(run: RunDescription) -> dict[str, Any]:
    """Settings of ours that are not the preset's, by their dotted names."""
    if run.algorithm != OURS or run.preset not in PRESETS:
        return dict(_leaves(run.settings))
    usual = dict(_leaves(to_dict(preset(run.preset))))
    return {name: value for name, value in _leaves(run.settings) if value != usual.get(name)}


def compare_runs(one: RunFolder, other: RunFolder) -> list[dict[str, Any]]:
    """In what two runs differ, fit for JSON: what they were told, what made them, and where their results part.

    Times and places apart. Raises `ConfigError` for a folder that is no run.
    """
    runs = [folder.read_description() for folder in (one, other)]
    records = [folder.read_record() for folder in (one, other)]
    told = [_told(run) for run in runs]
    made = [dict(_leaves({name: record.get(name) for name in MADE})) for record in records]
    found = [*_differences("told", *told), *_differences("made", *made)]
    for name in TABLES:
        found += _first_difference(name, *(_rows(folder.path / name) for folder in (one, other)))
    return found + _state_differences(one, other)


def _told(run: RunDescription) -> dict[str, Any]:
    named = {name: getattr(run, name) for name in ("env_id", "algorithm", "preset", "seed", "total_steps")}
    return {**named, **dict(_leaves(run.settings))}


def _differences(kind: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [*a, *(name for name in b if name not in a)]
    return [
        {"kind": kind, "what": name, "a": a.get(name), "b": b.get(name)} for name in names if a.get(name) != b.get(name)
    ]


def _first_difference(table: str, a: list[dict[str, str]], b: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The first row in which two tables differ, to the last digit, and in what columns."""
    for row_a, row_b in zip(a, b, strict=False):
        columns = [c for c in {**row_a, **row_b} if c not in TIMES and row_a.get(c) != row_b.get(c)]
        if columns:
            what = f"{table} from env_step {row_a.get('env_step')} on: {', '.join(columns)}"
            first = columns[0]
            return [{"kind": "results", "what": what, "a": row_a.get(first), "b": row_b.get(first)}]
    if len(a) != len(b):
        return [{"kind": "results", "what": f"rows of {table}", "a": len(a), "b": len(b)}]
    return []


def _state_differences(one: RunFolder, other: RunFolder) -> list[dict[str, Any]]:
    """Whether what was learned is the same to the bit at the newest checkpoint that both have."""
    archives = [Archive(folder.path / "checkpoints", keep=1) for folder in (one, other)]
    common = sorted(set(archives[0].steps) & set(archives[1].steps))
    if not common:
        return []
    states = [archive.checksum(common[-1], STATE) for archive in archives]
    if states[0] == states[1]:
        return []
    return [{"kind": "results", "what": f"state at checkpoint {common[-1]}", "a": states[0], "b": states[1]}]


def _checkpoints(folder: RunFolder) -> list[dict[str, Any]]:
    archive = Archive(folder.path / "checkpoints", keep=1)
    return [{"env_step": step, "damage": archive.damage(step)} for step in archive.steps]


def _evaluations(means: Mapping[int, float]) -> dict[str, Any]:
    """The last and the best."""
    if not means:
        return {"count": 0}
    best = max(means, key=lambda step: means[step])
    last = max(means)
    return {
        "count": len(means),
        "last_step": last,
        "last_return": means[last],
        "best_step": best,
        "best_return": means[best],
    }


def _rows(path: Path) -> list[dict[str, str]]:
    rows = read_table(path) if path.is_file() else []
    return [row for row in rows if str(row.get("env_step", "")).isdecimal() and None not in row.values()]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# -------------------------------------------------------------------- in words


def in_words(record: Mapping[str, Any]) -> str:
    """A record of `inspect_run` for people."""
    made, evaluations, troubles = record["made_with"], record["evaluations"], record["troubles"]
    changed = ", ".join(f"{name} {value}" for name, value in record["changed_settings"].items())
    checkpoints = [f"{c['env_step']}{' (' + c['damage'] + ')' if c['damage'] else ''}" for c in record["checkpoints"]]
    quality = "not evaluated yet"
    if evaluations["count"]:
        quality = (
            f"mean return {evaluations['last_return']:.1f} at step {evaluations['last_step']}, "
            f"best {evaluations['best_return']:.1f} at step {evaluations['best_step']}"
        )
    lines = {
        "run": f"{record['env_id']}, {record['algorithm']}, preset {record['preset']}, seed {record['seed']}",
        "settings": changed or "the preset's",
        "done": f"{record['env_step']} of {record['total_steps']} steps in {record['wall_seconds']:.0f} s",
        "quality": quality,
        "troubles": ", ".join(f"{name} {count}" for name, count in troubles.items()),
        "made with": ", ".join(f"{name} {value}" for name, value in _leaves(made) if value not in (None, "", {})),
        "before": f"{record['made_otherwise_before']} times made otherwise",
        "forked from": ", ".join(f"{fork.get('run')} at step {fork.get('env_step')}" for fork in record["forks"])
        or "none",
        "checkpoints": ", ".join(checkpoints) or "none",
        "size": f"{record['bytes'] / 1e6:.1f} MB",
    }
    return "\n".join(f"{name}: {text}" for name, text in lines.items())


def differences_in_words(found: list[dict[str, Any]]) -> str:
    """What `compare_runs` found, for people."""
    if not found:
        return "no difference but times: same settings, same makers, same results to the last digit"
    return "\n".join(f"{d['kind']}: {d['what']}: {_short(d['a'])} | {_short(d['b'])}" for d in found)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
