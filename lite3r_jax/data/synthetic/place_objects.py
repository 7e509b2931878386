"""Random furnished rooms: the room, and the primitives that stand in it and hang on its walls."""

from collections.abc import Sequence

import numpy as np

from lite3r_jax.data.synthetic.materials import draw_material
from lite3r_jax.data.synthetic.rng import Rng
from lite3r_jax.data.synthetic.texture import COLUMNS, pack
from lite3r_jax.data.synthetic.world import (
    BOXES,
    CYLINDERS,
    ELLIPSOIDS,
    FACES,
    PRIMITIVES,
    ROOM,
    World,
    affine_of,
)

_FLAT = 0.012  # half thickness of rugs and pictures
_GAP = 0.001  # things stand that much inside of what they stand on: no two faces coincide


class WorldBuilder:
    """Builder of a `World`, whose arrays are filled one primitive after the other."""

    def __init__(self, rng: Rng, families: Sequence[str], size: float):
        self.rng, self.families, self.size = rng, families, size
        self.affine = np.tile(np.eye(3, 4), (PRIMITIVES, 1, 1))
        self.half = np.ones((PRIMITIVES, 3))
        self.active = np.zeros(PRIMITIVES, bool)
        self.materials = np.zeros((PRIMITIVES, FACES, COLUMNS))
        self.free = {kind: list(kind) for kind in (BOXES, ELLIPSOIDS, CYLINDERS)}
        self.plain = pack(self.material())  # of what is not there: numbers that divide

    def material(self):
        """Draws a material of any of the builder's families."""
        return draw_material(self.rng, self.rng.choice(self.families), self.size)

    def place(self, index: int, center, half, rotation=None) -> None:
        """Places the primitive with number `index`, and draws its material."""
        rotation = np.eye(3) if rotation is None else rotation
        self.half[index], self.active[index] = half, True
        self.affine[index] = affine_of(np.asarray(center), np.asarray(half), rotation)
        self.materials[index] = pack(self.material())

    def add(self, kind: range, center, half, rotation=None) -> None:
        """Places the next free primitive of a kind, or does nothing if none is left."""
        if self.free[kind]:  # a room that is full takes no more
            self.place(self.free[kind].pop(0), center, half, rotation)


def place_objects(
    rng: Rng, families: Sequence[str], *, open_top: bool, scale: float | None
) -> World:
    """Draws a room with furniture around its middle, along its walls and on them.

    Args:
        rng: source of random numbers.
        families: of textures.
        open_top: whether the ceiling is left out.
        scale: of the world; None: such that the room is 0.1 to 100 units wide.
    """
    x, y, z = rng.uniform(2.2, 5.0), rng.uniform(1.15, 2.0), rng.uniform(2.2, 5.0)
    size = min(x, z) / 3.5  # how large things are
    builder = WorldBuilder(rng, families, rng.uniform(0.8, 1.2) * size)
    build_room(builder, (x, y, z))
    along_walls(builder, (x, y, z))
    _in_the_middle(builder, (x, y, z), size)
    return _world(builder, open_top, rng.log_uniform(0.1, 100) / (2 * max(x, z)), scale)


def place_on_table(rng: Rng, families: Sequence[str], *, scale: float) -> World:
    """Draws a table with things on it in the middle of a wide room, for cameras all around.

    Nothing but the walls is farther than 1.3 from the axis of the room.
    """
    size = 0.5
    builder = WorldBuilder(rng, families, size)
    build_room(builder, (4.0, 2.0, 4.0))
    top = 0.7
    builder.add(CYLINDERS, (0, top + 0.05, 0), (1.25, 0.05, 1.25))
    builder.add(CYLINDERS, (0, 1.4, 0), (0.3, 0.7, 0.3))
    for _ in range(rng.between(5, 10)):
        _stand(builder, 0.8 * np.sqrt(rng.uniform()), top, size)
    return _world(builder, False, scale, scale)


def finish(builder: WorldBuilder, *, scale: float, void: bool = False) -> World:
    """Returns the world that a builder has filled, with light drawn at random.

    Args:
        builder: the builder, with all primitives placed.
        scale: units of the sample per unit of the world.
        void: whether there are no walls, floor and ceiling.
    """
    return _world(builder, False, scale, scale, void)


def _world(
    builder: WorldBuilder, open_top: bool, drawn: float, scale: float | None, void: bool = False
) -> World:
    rng = builder.rng
    builder.materials[~builder.active] = builder.plain
    room = builder.half[ROOM]
    lamp = rng.uniforms(3, low=-0.5, high=0.5) * room
    lamp[1] = -rng.uniform(0.55, 0.9) * room[1]
    glow = rng.uniforms(2, 3)
    return World(
        affine=builder.affine,
        half=builder.half,
        active=builder.active,
        open_top=np.array(open_top),
        materials=builder.materials.reshape(-1, COLUMNS),
        seeds=rng.bits(PRIMITIVES * FACES),
        lamp=lamp,
        lamp_power=np.array(rng.uniform(0.35, 0.6)),
        horizon=0.7 + 0.25 * glow[0],
        zenith=np.array([0.2, 0.4, 0.75]) + 0.15 * glow[1],
        scale=np.array(drawn if scale is None else scale),
        void=np.array(void),
    )


def build_room(builder: WorldBuilder, half) -> None:
    """Places the room itself, with materials for its walls, floor and ceiling."""
    builder.place(ROOM, (0, 0, 0), half)
    walls, floor, ceiling = builder.material(), builder.material(), builder.material()
    papers = [walls, walls if builder.rng.chance(0.5) else builder.material()]
    shown = ceiling._replace(bright=0.4 + 0.6 * ceiling.bright, dark=0.3 + 0.6 * ceiling.dark)
    faces = [papers[0], papers[0], shown, floor, papers[1], papers[1]]
    builder.materials[ROOM] = [pack(face) for face in faces]


def along_walls(builder: WorldBuilder, room) -> None:
    """Places cupboards, pillars and pictures with their backs to the walls."""
    rng, (_, high, _) = builder.rng, room
    for _ in range(rng.between(0, 3)):  # cupboards and pillars
        tall = high if rng.chance(0.3) else rng.uniform(0.25, 0.85) * high
        half = np.array([rng.uniform(0.25, 0.9), tall, rng.uniform(0.15, 0.4)])
        center, rotation = _at_wall(rng, room, half, high - tall)
        builder.add(BOXES, center, half, rotation)
    for _ in range(rng.between(1, 4)):  # pictures
        half = np.array([rng.uniform(0.25, 0.8), rng.uniform(0.2, 0.5) * high, _FLAT])
        center, rotation = _at_wall(rng, room, half, rng.uniform(-0.4, 0.2) * high)
        builder.add(BOXES, center, half, rotation)


def _at_wall(rng: Rng, room, half, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws (center, rotation) of a thing with its back to one of the four walls."""
    wall = rng.below(4)
    along, across = (room[0], room[2]) if wall % 2 == 0 else (room[2], room[0])
    slide = rng.uniform(-1, 1) * max(along - half[0], 0)
    turn = _about_y(wall * 0.5 * np.pi)
    return turn @ [slide, y + _GAP, across - half[2] + _GAP], turn


def _in_the_middle(builder: WorldBuilder, room, size: float) -> None:
    rng, floor = builder.rng, room[1]
    reach = 0.62 * min(room[0], room[2])
    if rng.chance(0.5):  # a rug
        half = (rng.uniform(0.5, 1.2) * size, _FLAT, rng.uniform(0.5, 1.2) * size)
        builder.add(BOXES, (0, floor - _FLAT + _GAP, 0), half, _about_y(rng.uniform(0, np.pi)))
    if rng.chance(0.6):
        _table(builder, reach, floor, size)
    for _ in range(rng.between(4, 8)):
        _stand(builder, reach * np.sqrt(rng.uniform()), floor, size)
    if rng.chance(0.4):  # a lamp or a balloon
        radius = rng.uniform(0.12, 0.3) * size
        center = _polar(rng, 0.5 * reach)
        center[1] = -rng.uniform(0.3, 0.7) * room[1]
        builder.add(ELLIPSOIDS, center, (radius,) * 3)


def _table(builder: WorldBuilder, reach: float, floor: float, size: float) -> None:
    rng = builder.rng
    center = _polar(rng, reach * rng.uniform())
    tall, thick = rng.uniform(0.5, 0.8) * size, 0.03 * size
    turn = _about_y(rng.uniform(0, np.pi))
    half = np.array([rng.uniform(0.4, 0.9), 0, rng.uniform(0.3, 0.6)]) * size
    half[1] = thick
    builder.add(BOXES, center + [0, floor - tall, 0], half, turn)
    leg = np.array([0.08 * size, 0.5 * tall, 0.08 * size])
    builder.add(CYLINDERS, center + [0, floor - 0.5 * tall + _GAP, 0], leg)
    top = floor - tall - thick
    small = rng.uniform(0.1, 0.2) * size
    builder.add(
        rng.choice((BOXES, ELLIPSOIDS, CYLINDERS)), center + [0, top - small + _GAP, 0],
        (small,) * 3, turn,
    )  # fmt: skip


def _stand(builder: WorldBuilder, radius: float, floor: float, size: float) -> None:
    """Puts a thing, or a pile of two, on the floor at a given radius; few lean or float."""
    kind = builder.rng.choice((BOXES, BOXES, ELLIPSOIDS, CYLINDERS))
    stand(builder, _polar(builder.rng, radius), floor, size, kind)


def stand(
    builder: WorldBuilder, center: np.ndarray, floor: float, size: float, kind: range | None = None
) -> None:
    """Puts a thing, or a pile of two, on the floor below a point; few lean or float.

    Args:
        builder: of the world.
        center: [3] with 0 for its height.
        floor: height of the floor.
        size: how large things are; 1 for rooms of some meters.
        kind: of primitives; None: any.
    """
    rng = builder.rng
    kind = rng.choice((BOXES, BOXES, ELLIPSOIDS, CYLINDERS)) if kind is None else kind
    half = rng.uniforms(3, low=0.18, high=0.6) * size
    half[1] = min(half[1], 0.5 * abs(floor))  # a pile ends below the ceiling
    if kind is not BOXES:
        half[2] = half[0]
    turn = _about_y(rng.uniform(0, np.pi))
    lift = rng.uniform(0.1, 0.8) * size if rng.chance(0.12) else -_GAP
    if kind is BOXES and rng.chance(0.2):
        turn = turn @ _about_x(rng.uniform(-0.5, 0.5))
    elif kind is CYLINDERS and rng.chance(0.2):  # lies on its side
        turn = turn @ _about_x(0.5 * np.pi)
        lift = -_GAP + half[0] - half[1]
    builder.add(kind, center + [0, floor - half[1] - lift, 0], half, turn)
    if rng.chance(0.3) and lift < 0:
        small = half * rng.uniform(0.4, 0.8)
        other = rng.choice((BOXES, ELLIPSOIDS, CYLINDERS))
        if other is not BOXES:
            small[2] = small[0]
        above = floor - 2 * half[1] - small[1] + 2 * _GAP
        builder.add(other, center + [0, above, 0], small, _about_y(rng.uniform(0, np.pi)))


def _polar(rng: Rng, radius: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([radius * np.cos(angle), 0, radius * np.sin(angle)])


def _about_y(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _about_x(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
