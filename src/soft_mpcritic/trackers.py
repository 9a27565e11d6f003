"""Services that show the curves of many runs: Weights & Biases and MLflow. Like TensorBoard, a view of metrics.csv."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from soft_mpcritic.config import ConfigError
from soft_mpcritic.files import LOG, write_json

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}  # of every service, and the extra of the same name
PROJECT = "soft-mpcritic"
IDENTITY = "tracker.json"  # in the run folder: by what names services know the run, so that it goes on there too


@runtime_checkable
class Tracker(Protocol):
    """Where points of curves go while a run is under way."""

    def add(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        """A point on each of the named curves; `wall_time` in seconds since 1970."""
        ...

    def close(self) -> None: ...


def check_tracker(name: str) -> None:
    """Raises `ConfigError` where the service's package is not installed."""
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        raise ConfigError(f"tracker {name!r} needs a package: pip install 'soft-mpcritic[{name}]'.")


def make_tracker(name: str, folder: Path, settings: Mapping[str, Any]) -> "Shielded":
    """The service of that name, for the run in `folder`; it logs in and finds its server as its own manual says."""
    made: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: Wandb(folder, settings),
        "mlflow": lambda: MLflow(folder, settings),
    }
    return Shielded(name, made[name])


class Shielded:
    """A tracker whose failures never stop a run: the first is told, and nothing is sent after it."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._tracker = self._try(make)

    def add(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        if self._tracker is not None:
            self._try(partial(self._tracker.add, step, wall_time, values))

    def close(self) -> None:
        if self._tracker is not None:
            self._try(self._tracker.close)
        self._tracker = None

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever a service and its network may raise
            self._tracker = None
            told = " ".join(str(error).split())[:200]
            LOG.warning("no more curves for %s: %s; metrics.csv has them all", self._name, told)


class Wandb:
    """A run of Weights & Biases; offline with WANDB_MODE=offline. Steps lived again are shown twice."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        known = _identity(folder).get("wandb")
        self._run = wandb.init(
            project=PROJECT, name=folder.name, dir=folder, id=known, resume="allow", config=dict(settings)
        )
        self._run.define_metric("*", step_metric="env_step")
        _remember(folder, wandb=self._run.id)

    def add(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        self._run.log({"env_step": step, "wall_time": wall_time, **values})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, at the server or in the files that MLFLOW_TRACKING_URI names."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        self._client, self._point = MlflowClient(), Metric
        self._id = _identity(folder).get("mlflow") or self._begin(folder, settings)
        self._client.update_run(self._id, status="RUNNING")

    def _begin(self, folder: Path, settings: Mapping[str, Any]) -> str:
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = self._client.create_experiment(PROJECT) if known is None else known.experiment_id
        begun = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for section, values in settings.items():
            for name, value in values.items() if isinstance(values, Mapping) else ():
                self._client.log_param(begun, f"{section}.{name}", value)
        _remember(folder, mlflow=begun)
        return begun

    def add(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        points = [self._point(name, value, int(1000 * wall_time), step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=points)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _identity(folder: Path) -> dict[str, str]:
    try:
        known = json.loads((folder / IDENTITY).read_text())
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in known.items() if isinstance(value, str)} if isinstance(known, dict) else {}


def _remember(folder: Path, **names: str) -> None:
    write_json(folder / IDENTITY, {**_identity(folder), **names})
