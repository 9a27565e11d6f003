"""The simulated plant: stepped, pushed, looked at, and asked where in space an imagined observation would be."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mujoco as untyped_mujoco
import numpy as np
from jaxtyping import Float

from soft_mpcritic.envs import EnvVector, Task
from soft_mpcritic.types import Experience

mujoco: Any = untyped_mujoco

PUSH_SECONDS = 0.1
UNTOLD_STEP = 0.05  # s, of plants that do not tell how long an action lasts
TIPS = ("tip", "fingertip", "torso")  # what to follow in space, of sites and bodies with such names
EQUAL = 1e-5  # float32 and back


class Column(NamedTuple):
    """Where observations hold a joint position: as it is, or as sine and cosine of the angle."""

    position: int
    components: tuple[int, ...]  # (value,) or (sine, cosine)

    def read(self, rows: Float[np.ndarray, "R S"]) -> Float[np.ndarray, " R"]:
        if len(self.components) == 1:
            return rows[:, self.components[0]]
        sine, cosine = self.components
        return np.arctan2(rows[:, sine], rows[:, cosine])


def find_columns(positions: Float[np.ndarray, "R Q"], obs: Float[np.ndarray, "R S"]) -> list[Column]:
    """The joint positions that observations show, found by comparing many; one that never moved is not found."""

    def equal_to(wanted: Float[np.ndarray, " R"]) -> np.ndarray:
        return np.flatnonzero((np.abs(obs - wanted[:, None]) <= EQUAL * (1 + np.abs(wanted))[:, None]).all(axis=0))

    found: list[Column] = []
    for position in np.flatnonzero(np.ptp(positions, axis=0) > 1e-3).tolist():
        values = positions[:, position]
        for candidates in ((equal_to(values),), (equal_to(np.sin(values)), equal_to(np.cos(values)))):
            if all(len(components) for components in candidates):
                found.append(Column(position, tuple(int(components[0]) for components in candidates)))
                break
    return found


class Plant:
    """One environment of a task; `options` go to the environment. Episodes that end start anew."""

    def __init__(self, task: Task, seed: int, **options: Any) -> None:
        self._envs = EnvVector(task, 1, **options)
        self._random = np.random.default_rng(seed)
        self._low, self._high = np.array(task.action_low), np.array(task.action_high)
        self._overruled = np.zeros(0)
        self._pushed, self._force = 0, np.zeros(3)
        self.obs = self._envs.reset(seed)[0]
        self.model, self._data = self._simulator()
        self.step_seconds = task.action_repeat * float(getattr(self._unwrapped, "dt", UNTOLD_STEP))
        if self.model is not None:
            self._marker, self.body = find_marker(self.model)
            self._columns = self._compare(task)
            self._shown, self._scratch = mujoco.MjData(self.model), mujoco.MjData(self.model)
            self._before = self._now = self.positions

    @property
    def positions(self) -> Float[np.ndarray, " Q"]:
        """Of the joints; of none where the plant is not MuJoCo's."""
        return np.zeros(0) if self._data is None else self._data.qpos.copy()

    @property
    def traceable(self) -> bool:
        """Do observations say where the plant is in space?"""
        return self.model is not None and len(self._columns) > 0

    def reset(self, seed: int) -> None:
        self._pushed = 0
        self.obs = self._envs.reset(seed)[0]
        self._moved(jumped=True)

    def step(self, action: Float[np.ndarray, " A"]) -> Experience:
        """One control step under an action in the task's units, and under a push if there is one."""
        if self._pushed and self._data is None:
            action = self._overruled
        if self._data is not None:
            self._data.xfrc_applied[self.body, :3] = self._force if self._pushed else 0.0
        self._pushed = max(self._pushed - 1, 0)
        experience = self._envs.step(np.asarray(action)[None])
        self.obs = np.asarray(experience.start_obs[0])
        self._moved(jumped=bool(experience.done[0]))
        return experience

    def push(self, speed: float) -> None:
        """A force for 0.1 s, which would give the followed body that speed (m/s) if it were free; to or fro.

        A plant without MuJoCo's forces has its actions overruled for as long, by extreme ones.
        """
        self._pushed = max(round(PUSH_SECONDS / self.step_seconds), 1)
        direction = self._random.choice([-1.0, 1.0])
        if self.model is None:
            self._overruled = np.where(self._random.random(len(self._low)) < 0.5, self._low, self._high)
            return
        seconds = self._pushed * self.step_seconds
        self._force = np.array([direction * self.model.body_mass[self.body] * speed / seconds, 0.0, 0.0])

    def pose(self, share: float) -> Any:
        """MuJoCo's data between the last control step (0) and this one (1), for smooth pictures."""
        speed = np.zeros(self.model.nv)
        positions = self._before.copy()
        mujoco.mj_differentiatePos(self.model, speed, 1.0, self._before, self._now)
        mujoco.mj_integratePos(self.model, positions, speed, min(max(share, 0.0), 1.0))
        self._shown.qpos[:] = positions
        mujoco.mj_kinematics(self.model, self._shown)
        return self._shown

    def picture(self) -> np.ndarray | None:
        """What the environment renders, [height, width, 3]; None where it does not."""
        env = self._envs.first_env
        return np.asarray(env.render()) if env.render_mode == "rgb_array" else None

    def trace(self, rows: Float[np.ndarray, "*rows S"]) -> Float[np.ndarray, "*rows 3"]:
        """Where the followed point would be at observations; positions that these do not show are those of now."""
        flat = rows.reshape(-1, rows.shape[-1])
        positions = np.tile(self._now, (len(flat), 1))
        for column in self._columns:
            positions[:, column.position] = column.read(flat)
        points = np.empty((len(flat), 3))
        array, place = self._marker
        source = getattr(self._scratch, array)
        for index, row in enumerate(positions):
            self._scratch.qpos[:] = row
            mujoco.mj_kinematics(self.model, self._scratch)
            points[index] = source[place]
        return points.reshape(*rows.shape[:-1], 3)

    def close(self) -> None:
        self._envs.close()

    def _moved(self, jumped: bool) -> None:
        if self.model is not None:
            self._before, self._now = self._now, self.positions
            if jumped:
                self._before = self._now

    def _compare(self, task: Task) -> list[Column]:
        """Plays some random steps elsewhere, to see which observation shows which joint."""
        envs = EnvVector(task, 1)
        try:
            data: Any = envs.first_env.unwrapped
            pairs: list[tuple[Any, Any]] = []
            for seed in range(4):
                obs = envs.reset(seed)[0]
                for _ in range(15):
                    pairs.append((data.data.qpos.copy(), obs))
                    obs = envs.step(self._random.uniform(self._low, self._high)[None]).start_obs[0]
        finally:
            envs.close()
        positions, observed = zip(*pairs, strict=True)
        return find_columns(np.stack(positions), np.stack(observed))

    @property
    def _unwrapped(self) -> Any:
        return self._envs.first_env.unwrapped

    def _simulator(self) -> tuple[Any, Any]:
        """MuJoCo's model and data, or twice None."""
        model = getattr(self._unwrapped, "model", None)
        return (model, self._unwrapped.data) if isinstance(model, mujoco.MjModel) else (None, None)


def find_marker(model: Any) -> tuple[tuple[str, int], int]:
    """What to follow: the array of MuJoCo's data and the row that say where it is, and the body that it belongs to."""
    names: Sequence[tuple[str, Any]] = [
        *((model.site(i).name, (("site_xpos", i), int(model.site_bodyid[i]))) for i in range(model.nsite)),
        *((model.body(i).name, (("xpos", i), i)) for i in range(1, model.nbody)),
    ]
    for tip in TIPS:
        for name, marker in names:
            if name == tip:
                return marker
    last = model.ngeom - 1
    return ("geom_xpos", last), int(model.geom_bodyid[last])
