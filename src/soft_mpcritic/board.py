"""Curves for TensorBoard. They are a view of metrics.csv: where they cannot be written, the run goes on without."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from soft_mpcritic.files import LOG, why

EVENT, SESSION = (getattr(event_pb2, name) for name in ("Event", "SessionLog"))  # made at run time, from a schema


class Board:
    """One event file, written at once and by the calling thread.

    (tensorboardX's own `SummaryWriter` writes on a thread; when a disk is full, that thread dies and the program hangs
    on its queue.)
    """

    def __init__(self, folder: Path, resumed_at: int = -1) -> None:
        self._writer: EventsWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        except OSError as error:
            self._give_up(error)
        if resumed_at >= 0:  # what was shown of later steps is void
            start = EVENT(step=resumed_at + 1, session_log=SESSION(status=SESSION.START))
            self._try(lambda writer: writer.write_event(start))

    def add(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        """A point on each of the named curves; `wall_time` in seconds since 1970."""
        for name, value in values.items():
            event = EVENT(step=step, wall_time=wall_time, summary=scalar(name, value))
            self._try(lambda writer, event=event: writer.write_event(event))
        self._try(lambda writer: writer.flush())

    def close(self) -> None:
        self._try(lambda writer: writer.close())
        self._writer = None

    def _try(self, act: Callable[[EventsWriter], Any]) -> None:
        if self._writer is None:
            return
        try:
            act(self._writer)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        LOG.warning("no more curves for TensorBoard: %s; metrics.csv has them all", why(error))
