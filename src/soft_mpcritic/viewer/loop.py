"""Real time: control steps when they are due, frames at an even rate."""

import contextlib
import errno
import io
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from soft_mpcritic.checkpoint import Which
from soft_mpcritic.config import ConfigError, check
from soft_mpcritic.run_folder import RunFolder
from soft_mpcritic.training import load_state, stop_requests
from soft_mpcritic.video import render_options
from soft_mpcritic.viewer.session import Session

FRAME_RATE = 30.0  # a second; a frame that is due goes first, so that a slow solve slows the plant and not the picture
CHART_RATE = 10.0
LAG = 0.25  # s that the plant may be behind and catch up; what is more is lost, and it is slower than real time


class Clock:
    """When the next control step is due, and how fast the plant's time runs beside the wall's."""

    def __init__(self, period: float, now: float) -> None:
        self._period, self.due = period, now
        self._steps: deque[float] = deque(maxlen=max(round(2 / period), 2))

    def stepped(self, now: float) -> None:
        self._steps.append(now)
        self.due = max(self.due + self._period, now - LAG)

    def restart(self, now: float) -> None:
        """After a pause."""
        self.due = now
        self._steps.clear()

    def share(self, now: float) -> float:
        """How much of the running control step has passed, in [0, 1]."""
        return min(max(1 - (self.due - now) / self._period, 0.0), 1.0)

    @property
    def speed(self) -> float:
        """1: real time."""
        return rate(self._steps) * self._period


def rate(times: deque[float]) -> float:
    """Events a second."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


class Loop:
    """Steps a session and draws it, on one thread, until told to stop."""

    def __init__(self, session: Session, scene: Any, panel: Any, server: Any) -> None:
        self._session, self._scene, self._panel, self._server = session, scene, panel, server
        self._frames: deque[float] = deque(maxlen=60)
        self._charted = 0.0

    @property
    def frame_rate(self) -> float:
        """Over the last two seconds."""
        return rate(self._frames)

    def run(self, stopped: Callable[[], bool]) -> None:
        clock = Clock(self._session.plant.step_seconds, time.perf_counter())
        frame_due = time.perf_counter()
        while not stopped():
            self._panel.fulfil()
            now = time.perf_counter()
            if self._panel.paused:
                self._session.refresh()
                clock.restart(now)
            elif now >= clock.due:
                self._session.tick()
                clock.stepped(time.perf_counter())
            now = time.perf_counter()
            if now >= frame_due:
                self._draw(clock, now)
                frame_due = max(frame_due + 1 / FRAME_RATE, now)
            due = frame_due if self._panel.paused else min(frame_due, clock.due)
            time.sleep(max(due - time.perf_counter(), 0))

    def _draw(self, clock: Clock, now: float) -> None:
        self._frames.append(now)
        with self._server.atomic():
            self._scene.draw(self._session, 1.0 if self._panel.paused else clock.share(now))
            if now >= self._charted + 1 / CHART_RATE:
                self._charted = now
                self._panel.chart(self._session.imagine().disagreement)
                self._panel.write(self.frame_rate, clock.speed)


def view_run(
    run_dir: Path,
    host: str,
    port: int,
    seed: int,
    say: Callable[[str], None] = print,
    control: Mapping[str, Any] | None = None,
    checkpoint: Which = "newest",
) -> None:
    """Shows a run's controller at work until it is interrupted. Raises `ConfigError` for what the user can mend."""
    folder = RunFolder(run_dir)
    settings = folder.read_settings()
    check_viewer()
    check_port(host, port)
    agent, state = load_state(folder, settings, control, checkpoint)
    check(agent.task.has_gymnasium, "run_dir", "hold a Gymnasium task", settings.env_id, "view another run")
    session = Session(agent, state.models, seed, **render_options(agent.task))
    try:
        with stop_requests() as stopped:
            server, loop = open_viewer(session, settings.env_id, agent.config.dynamics.members, host, port)
            say(f"{settings.env_id}: http://{host}:{port} (Ctrl-C ends it)")
            loop.run(stopped)
            server.stop()
    finally:
        session.close()


def open_viewer(session: Session, title: str, members: int, host: str, port: int) -> tuple[Any, Loop]:
    """The server with everything in it, and the loop that moves it."""
    import viser  # pyright: ignore[reportMissingImports]

    from soft_mpcritic.viewer.panel import Panel
    from soft_mpcritic.viewer.scene import Scene

    with contextlib.redirect_stdout(io.StringIO()):  # it greets with a table of addresses
        server = viser.ViserServer(host=host, port=port, label=title, verbose=False)
    scene, panel = Scene(server, session.plant), Panel(server, session, members)
    return server, Loop(session, scene, panel, server)


def check_viewer() -> None:
    """Raises `ConfigError` where the viewer's package is not installed."""
    if find_spec("viser") is None:
        raise ConfigError("the viewer needs viser: pip install 'soft-mpcritic[viewer]'.")


def check_port(host: str, port: int) -> None:
    """Raises `ConfigError` unless a server may listen there."""
    check(0 < port < 2**16, "port", "lie in [1, 65535]", port, "try 8080")
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        remedy = f"choose another one, --port {port + 1} say" if taken else "use --host 127.0.0.1 and a port over 1023"
        told = "is in use" if taken else f"cannot be served ({error.strerror})"
        raise ConfigError(f"port {port} of {host} {told}: {remedy}.") from error
