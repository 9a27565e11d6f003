"""Curves for TensorBoard. They are a view of metrics.csv: where they cannot be written, the run goes on without."""

import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from soft_mpcritic.files import LOG, add_whole, why

EVENT, SESSION = (getattr(event_pb2, name) for name in ("Event", "SessionLog"))  # made at run time, from a schema


class Board:
    """One event file, written at once and by the calling thread.

    (tensorboardX's own writer has a thread; when a disk is full, that thread dies and the program hangs on its queue.)
    """

    def __init__(self, folder: Path, resumed_at: int = -1) -> None:
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._path: Path | None = folder / name
        first = [EVENT(wall_time=time.time(), file_version="brain.Event:2")]
        if resumed_at >= 0:  # what was shown of later steps is void
            first.append(EVENT(step=resumed_at + 1, session_log=SESSION(status=SESSION.START)))
        self._write(first)

    def add(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        """A point on each of the named curves; `wall_time` in seconds since 1970."""
        self._write([EVENT(step=step, wall_time=wall_time, summary=scalar(n, value)) for n, value in values.items()])

    def _write(self, events: Sequence[Any]) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            add_whole(self._path, b"".join(_record(event.SerializeToString()) for event in events))
        except OSError as error:
            self._path = None
            LOG.warning("no more curves for TensorBoard: %s; metrics.csv has them all", why(error))


def _record(content: bytes) -> bytes:
    """As TensorFlow writes records: length and content, each with its checksum."""
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]
