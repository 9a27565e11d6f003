"""What is drawn in space: the plant's bodies, the fan of sampled trajectories, and the plan as every member sees it."""

from typing import Any

import mujoco as untyped_mujoco
import numpy as np
import trimesh  # pyright: ignore[reportMissingImports]
from jaxtyping import Float

from soft_mpcritic.viewer.plant import Plant
from soft_mpcritic.viewer.session import Session

mujoco: Any = untyped_mujoco

HIDDEN_GROUP = 3  # of geoms that MuJoCo's own viewer does not show either
WORST, BEST = np.array([176, 190, 208]), np.array([240, 120, 20])  # colours of samples, by their returns
PLAN = (20, 110, 60)
MEMBERS = ((31, 119, 180), (148, 103, 189), (214, 39, 40), (23, 190, 207))


class Scene:
    """The scene of one server, drawn anew for every frame."""

    def __init__(self, server: Any, plant: Plant) -> None:
        self._server, self._plant = server, plant
        server.scene.set_up_direction("+z")
        if plant.model is not None:
            self._bodies = Bodies(server, plant)
            self._fan = Fan(server)

    def draw(self, session: Session, share: float) -> None:
        """The moment that lies a `share` between the last control step and this one."""
        plant = self._plant
        if plant.model is None:
            picture = plant.picture()
            if picture is not None:
                self._server.scene.set_background_image(picture)
            return
        self._bodies.draw(plant.pose(share))
        if plant.traceable:
            imagined = session.imagine()
            self._fan.draw(plant.trace(imagined.samples), plant.trace(imagined.plan), session.solved.returns)


class Bodies:
    """MuJoCo's geoms as meshes that are made once and moved; where a body runs away, the world is moved instead."""

    def __init__(self, server: Any, plant: Plant) -> None:
        model, data = plant.model, plant.pose(1.0)
        self._world = server.scene.add_frame("/plant", show_axes=False)
        self._body = plant.body
        visible = [geom for geom in range(model.ngeom) if model.geom_group[geom] < HIDDEN_GROUP]
        made = {geom: _add_geom(server, model, geom) for geom in visible}
        for geom, handle in made.items():
            _place(handle, data, geom)
        self._moving = {geom: handle for geom, handle in made.items() if model.geom_bodyid[geom] > 0}
        self._runs = _runs(model)
        _look(server, model, data, plant.body)

    def draw(self, data: Any) -> None:
        if self._runs:
            x, y, _ = data.xpos[self._body]
            self._world.position = (-x, -y, 0.0)
        for geom, handle in self._moving.items():
            _place(handle, data, geom)


class Fan:
    """Where samples and plan lead, as lines of the followed point."""

    def __init__(self, server: Any) -> None:
        lines, nothing = server.scene.add_line_segments, np.zeros((1, 2, 3), np.float32)
        self._samples = lines("/plant/samples", nothing, (0, 0, 0), thickness=1.5, thickness_units="screen")
        self._members = lines("/plant/members", nothing, (0, 0, 0), thickness=3.0, thickness_units="screen")
        self._plan = lines("/plant/plan", nothing, PLAN, thickness=6.0, thickness_units="screen")

    def draw(
        self,
        samples: Float[np.ndarray, "C T 3"],
        members: Float[np.ndarray, "N T 3"],
        returns: Float[np.ndarray, " C"],
    ) -> None:
        steps = samples.shape[1] - 1
        for lines in (self._samples, self._members, self._plan):
            lines.visible = steps > 0
        if steps == 0:  # nothing is imagined at horizon 0
            return
        shades = rank_colours(returns)
        hues = np.array([MEMBERS[member % len(MEMBERS)] for member in range(len(members))], np.uint8)
        for lines, points, colours in ((self._samples, samples, shades), (self._members, members, hues)):
            lines.points = segments(points)
            lines.colors = np.broadcast_to(colours.repeat(steps, axis=0)[:, None], (len(colours) * steps, 2, 3)).copy()
        self._plan.points = segments(members.mean(axis=0, keepdims=True))


def segments(paths: Float[np.ndarray, "P T 3"]) -> Float[np.ndarray, "_ 2 3"]:
    """The T - 1 pieces of every path."""
    return np.stack([paths[:, :-1], paths[:, 1:]], axis=2).reshape(-1, 2, 3).astype(np.float32)


def rank_colours(returns: Float[np.ndarray, " C"]) -> np.ndarray:
    """From the worst return's colour to the best one's, [C, 3]; what is not finite is the worst."""
    ranks = np.argsort(np.argsort(np.where(np.isfinite(returns), returns, -np.inf)))
    share = (ranks / max(len(returns) - 1, 1))[:, None]
    return (WORST + share**2 * (BEST - WORST)).astype(np.uint8)


def _add_geom(server: Any, model: Any, geom: int) -> Any:
    name, rgba = f"/plant/geom{geom}", _colour(model, geom)
    colour, opacity = tuple(int(255 * part) for part in rgba[:3]), None if rgba[3] > 0.99 else float(rgba[3])
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE:
        size = [4 * half if 0 < half < 10 else 40.0 for half in model.geom_size[geom, :2]]
        return server.scene.add_grid(name, width=size[0], height=size[1], cell_size=0.25, section_size=1.0)
    mesh = geom_mesh(model, geom)
    return server.scene.add_mesh_simple(name, mesh.vertices, mesh.faces, color=colour, opacity=opacity)


def geom_mesh(model: Any, geom: int) -> Any:
    """The shape of a geom around its own origin; what has no shape here, a height field say, is a small ball."""
    size, kinds = model.geom_size[geom], mujoco.mjtGeom
    match model.geom_type[geom]:
        case kinds.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            rows, faces = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
            return trimesh.Trimesh(
                model.mesh_vert[rows : rows + model.mesh_vertnum[mesh]],
                model.mesh_face[faces : faces + model.mesh_facenum[mesh]],
                process=False,
            )
        case kinds.mjGEOM_CAPSULE:
            made = trimesh.creation.capsule(height=2 * size[1], radius=size[0])
        case kinds.mjGEOM_CYLINDER:
            made = trimesh.creation.cylinder(radius=size[0], height=2 * size[1])
        case kinds.mjGEOM_BOX:
            made = trimesh.creation.box(extents=2 * size)
        case kinds.mjGEOM_ELLIPSOID:
            made = trimesh.creation.icosphere(subdivisions=3).apply_scale(size)
        case kinds.mjGEOM_SPHERE:
            made = trimesh.creation.icosphere(subdivisions=3, radius=size[0])
        case _:
            made = trimesh.creation.icosphere(subdivisions=2, radius=0.02)
    return made.apply_translation(-made.bounds.mean(axis=0))


def _colour(model: Any, geom: int) -> Float[np.ndarray, " 4"]:
    material = model.geom_matid[geom]
    return (model.geom_rgba[geom] if material < 0 else model.mat_rgba[material]).astype(float)


def _place(handle: Any, data: Any, geom: int) -> None:
    turn = np.zeros(4)
    mujoco.mju_mat2Quat(turn, data.geom_xmat[geom])
    handle.position, handle.wxyz = data.geom_xpos[geom].copy(), turn


def _runs(model: Any) -> bool:
    """Is the root free to leave along the ground, by a slide of no limits or a free joint?"""
    first = model.body_jntadr[1] if model.nbody > 1 else -1
    if first < 0:
        return False
    free = model.jnt_type[first] == mujoco.mjtJoint.mjJNT_FREE
    slides = model.jnt_type[first] == mujoco.mjtJoint.mjJNT_SLIDE
    return bool(free or (slides and not model.jnt_limited[first]))


def _look(server: Any, model: Any, data: Any, body: int) -> None:
    """A camera from the side that sees the whole plant; what moves in a plane on the ground is seen from above."""
    moving = model.geom_bodyid > 0
    points, reach = data.geom_xpos[moving], model.geom_rbound[moving][:, None]
    low, high = (points - reach).min(axis=0), (points + reach).max(axis=0)
    size = float(max((high - low).max(), 1e-3))
    centre = (low + high) / 2
    if _runs(model):
        centre[:2] -= data.xpos[body, :2]
    flat = high[2] - low[2] < 0.3 * (high - low)[:2].max()
    way = np.array([0.0, -0.4, 1.3]) if flat else np.array([0.25, -1.4, 0.25])
    server.initial_camera.look_at = centre
    server.initial_camera.position = centre + size * way
