"""What is beside the scene: sliders, buttons, charts and a line of figures."""

from collections.abc import Callable
from typing import Any

import numpy as np
from viser import uplot  # pyright: ignore[reportMissingImports]

from soft_mpcritic.viewer.session import Session

MOST_SAMPLES, LONGEST_HORIZON = 512, 24
POINTS = 250  # of a chart
CHART = 150  # pixels high


class Panel:
    """The controls of a session. Callbacks run on the server's threads: they leave wishes, the loop fulfils them."""

    def __init__(self, server: Any, session: Session, members: int) -> None:
        self.paused = False
        self._session = session
        self._wishes: list[Callable[[], None]] = []
        gui = server.gui
        gui.configure_theme(control_layout="fixed", control_width="large", show_logo=False, show_share_button=False)
        self._figures = gui.add_markdown("")
        with gui.add_folder("Plant"):
            self._add_plant(gui)
        with gui.add_folder("Controller"):
            self._add_controller(gui, members)
        with gui.add_folder("Charts"):
            self._add_charts(gui)

    def fulfil(self) -> None:
        """Does what buttons asked for since the last call."""
        wishes, self._wishes = self._wishes, []
        for wish in wishes:
            wish()

    def write(self, frame_rate: float, speed: float) -> None:
        """The figures; `speed` is the plant's time over the clock's."""
        session = self._session
        state = "paused" if self.paused else f"{speed:.2f} x real time"
        setting = f"{session.setting.num_samples} samples, horizon {session.setting.horizon}"
        notes = [] if session.settled else ["compiling: the old setting goes on"]
        notes += [f"not possible: {session.complaint}"] if session.complaint else []
        lines = [
            f"**episode {session.episode}, return {session.ret:.1f}**",
            f"{state}, {frame_rate:.0f} frames a second",
            f"{setting}, solved in {1e3 * session.latency:.1f} ms",
            *notes,
        ]
        self._figures.content = "<br/>".join(lines)

    def chart(self, disagreement: np.ndarray) -> None:
        """The last seconds, and how much the members disagree along the horizon."""
        moments = list(self._session.history)
        moments = moments[:: max(len(moments) // POINTS, 1)]
        if len(moments) > 1:
            time, value, effective, latency, _ = np.array(moments, float).T
            for plot, column in ((self._value, value), (self._effective, effective), (self._latency, 1e3 * latency)):
                plot.data = (time, np.where(np.isfinite(column), column, np.nan))
        self._disagreement.data = (np.arange(len(disagreement), dtype=float), disagreement.astype(float))

    def _add_plant(self, gui: Any) -> None:
        session = self._session
        paused = gui.add_checkbox("pause", False)
        step, push, reset = gui.add_button("step"), gui.add_button("push"), gui.add_button("new episode")
        strength = gui.add_slider("push, m/s", min=0.0, max=3.0, step=0.1, initial_value=0.5)
        strength.visible = session.plant.model is not None
        paused.on_update(lambda _: setattr(self, "paused", paused.value))
        push.on_click(lambda _: self._wishes.append(lambda: session.plant.push(strength.value)))
        reset.on_click(lambda _: self._wishes.append(session.reset))

        def pause_and_step(_: Any) -> None:
            self.paused = paused.value = True
            self._wishes.append(session.tick)

        step.on_click(pause_and_step)

    def _add_controller(self, gui: Any, members: int) -> None:
        session, usual = self._session, self._session.temperature
        samples, horizon, _ = session.wanted
        temperature = gui.add_slider(
            "temperature", min=usual / 10, max=usual * 10, step=usual / 10, initial_value=usual
        )
        count = gui.add_slider("samples", min=1, max=max(MOST_SAMPLES, samples), step=1, initial_value=samples)
        steps = gui.add_slider("horizon", min=0, max=max(LONGEST_HORIZON, horizon), step=1, initial_value=horizon)
        hint = "the members that count, the worst ones: all, or fewer for caution"
        share = gui.add_slider("risk", min=1, max=members, step=1, initial_value=members, hint=hint)
        share.visible = members > 1
        temperature.on_update(lambda _: setattr(session, "temperature", float(temperature.value)))

        def want(**changes: Any) -> None:
            session.wanted = session.wanted._replace(**changes)

        count.on_update(lambda _: want(num_samples=int(count.value)))
        steps.on_update(lambda _: want(horizon=int(steps.value)))
        share.on_update(lambda _: want(worst_share=int(share.value) / members))

    def _add_charts(self, gui: Any) -> None:
        def plot(title: str, colour: str, along: str) -> Any:
            nothing = np.array([0.0, 1.0])
            return gui.add_uplot(
                data=(nothing, np.array([np.nan, np.nan])),
                series=(uplot.Series(label=along), uplot.Series(label=title, stroke=colour, width=2)),
                scales={"x": uplot.Scale(time=False)},
                title=title,
                legend=uplot.Legend(show=False),
                height=CHART,
            )

        self._value = plot("soft value", "#1f77b4", "s")
        self._effective = plot("effective samples", "#2ca02c", "s")
        self._latency = plot("latency, ms", "#d62728", "s")
        self._disagreement = plot("disagreement of the models, deviations, by steps ahead", "#9467bd", "steps")
