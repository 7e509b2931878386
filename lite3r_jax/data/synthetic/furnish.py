"""A room and what stands in it, drawn at random."""

from collections.abc import Sequence

import numpy as np

from lite3r_jax.data.synthetic.draws import Draws
from lite3r_jax.data.synthetic.looks import draw_look
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


class _Builder:
    """Arrays of a world that are filled one primitive after the other."""

    def __init__(self, draws: Draws, families: Sequence[str], size: float):
        self.draws, self.families, self.size = draws, families, size
        self.affine = np.tile(np.eye(3, 4), (PRIMITIVES, 1, 1))
        self.half = np.ones((PRIMITIVES, 3))
        self.active = np.zeros(PRIMITIVES, bool)
        self.looks = np.zeros((PRIMITIVES, FACES, COLUMNS))
        self.free = {kind: list(kind) for kind in (BOXES, ELLIPSOIDS, CYLINDERS)}
        self.plain = pack(self.look())  # of what is not there: numbers that divide

    def look(self):
        return draw_look(self.draws, self.draws.choice(self.families), self.size)

    def place(self, index: int, centre, half, rotation=None) -> None:
        rotation = np.eye(3) if rotation is None else rotation
        self.half[index], self.active[index] = half, True
        self.affine[index] = affine_of(np.asarray(centre), np.asarray(half), rotation)
        self.looks[index] = pack(self.look())

    def add(self, kind: range, centre, half, rotation=None) -> None:
        if self.free[kind]:  # a room that is full takes no more
            self.place(self.free[kind].pop(0), centre, half, rotation)


def furnish(draws: Draws, families: Sequence[str], *, open_top: bool, scale: float | None) -> World:
    """A room with furniture around its middle, along its walls and on them.

    Args:
        draws: where numbers come from.
        families: of textures.
        open_top: whether the ceiling is left out.
        scale: of the world; None: such that the room is 0.1 to 100 units wide.
    """
    x, y, z = draws.uniform(2.2, 5.0), draws.uniform(1.15, 2.0), draws.uniform(2.2, 5.0)
    size = min(x, z) / 3.5  # how large things are
    builder = _Builder(draws, families, draws.uniform(0.8, 1.2) * size)
    _room(builder, (x, y, z))
    _along_walls(builder, (x, y, z))
    _in_the_middle(builder, (x, y, z), size)
    return _world(builder, open_top, draws.log_uniform(0.1, 100) / (2 * max(x, z)), scale)


def furnish_table(draws: Draws, families: Sequence[str], *, scale: float) -> World:
    """A table with things on it in the middle of a wide room, for cameras all around.

    Nothing but the walls is farther than 1.3 from the axis of the room.
    """
    size = 0.5
    builder = _Builder(draws, families, size)
    _room(builder, (4.0, 2.0, 4.0))
    top = 0.7
    builder.add(CYLINDERS, (0, top + 0.05, 0), (1.25, 0.05, 1.25))
    builder.add(CYLINDERS, (0, 1.4, 0), (0.3, 0.7, 0.3))
    for _ in range(draws.between(5, 10)):
        _stand(builder, 0.8 * np.sqrt(draws.uniform()), top, size)
    return _world(builder, False, scale, scale)


def _world(builder: _Builder, open_top: bool, drawn: float, scale: float | None) -> World:
    draws = builder.draws
    builder.looks[~builder.active] = builder.plain
    room = builder.half[ROOM]
    lamp = draws.uniforms(3, low=-0.5, high=0.5) * room
    lamp[1] = -draws.uniform(0.55, 0.9) * room[1]
    glow = draws.uniforms(2, 3)
    return World(
        affine=builder.affine,
        half=builder.half,
        active=builder.active,
        open_top=np.array(open_top),
        looks=builder.looks.reshape(-1, COLUMNS),
        seeds=draws.bits(PRIMITIVES * FACES),
        lamp=lamp,
        lamp_power=np.array(draws.uniform(0.35, 0.6)),
        horizon=0.7 + 0.25 * glow[0],
        zenith=np.array([0.2, 0.4, 0.75]) + 0.15 * glow[1],
        scale=np.array(drawn if scale is None else scale),
    )


def _room(builder: _Builder, half) -> None:
    builder.place(ROOM, (0, 0, 0), half)
    walls, floor, ceiling = builder.look(), builder.look(), builder.look()
    papers = [walls, walls if builder.draws.chance(0.5) else builder.look()]
    shown = ceiling._replace(bright=0.4 + 0.6 * ceiling.bright, dark=0.3 + 0.6 * ceiling.dark)
    faces = [papers[0], papers[0], shown, floor, papers[1], papers[1]]
    builder.looks[ROOM] = [pack(face) for face in faces]


def _along_walls(builder: _Builder, room) -> None:
    draws, (_, high, _) = builder.draws, room
    for _ in range(draws.between(0, 3)):  # cupboards and pillars
        tall = high if draws.chance(0.3) else draws.uniform(0.25, 0.85) * high
        half = np.array([draws.uniform(0.25, 0.9), tall, draws.uniform(0.15, 0.4)])
        centre, rotation = _at_wall(draws, room, half, high - tall)
        builder.add(BOXES, centre, half, rotation)
    for _ in range(draws.between(1, 4)):  # pictures
        half = np.array([draws.uniform(0.25, 0.8), draws.uniform(0.2, 0.5) * high, _FLAT])
        centre, rotation = _at_wall(draws, room, half, draws.uniform(-0.4, 0.2) * high)
        builder.add(BOXES, centre, half, rotation)


def _at_wall(draws: Draws, room, half, y: float) -> tuple[np.ndarray, np.ndarray]:
    """(centre, rotation) of a thing with its back to one of the four walls."""
    wall = draws.below(4)
    along, across = (room[0], room[2]) if wall % 2 == 0 else (room[2], room[0])
    slide = draws.uniform(-1, 1) * max(along - half[0], 0)
    turn = _about_y(wall * 0.5 * np.pi)
    return turn @ [slide, y + _GAP, across - half[2] + _GAP], turn


def _in_the_middle(builder: _Builder, room, size: float) -> None:
    draws, floor = builder.draws, room[1]
    reach = 0.62 * min(room[0], room[2])
    if draws.chance(0.5):  # a rug
        half = (draws.uniform(0.5, 1.2) * size, _FLAT, draws.uniform(0.5, 1.2) * size)
        builder.add(BOXES, (0, floor - _FLAT + _GAP, 0), half, _about_y(draws.uniform(0, np.pi)))
    if draws.chance(0.6):
        _table(builder, reach, floor, size)
    for _ in range(draws.between(4, 8)):
        _stand(builder, reach * np.sqrt(draws.uniform()), floor, size)
    if draws.chance(0.4):  # a lamp or a balloon
        radius = draws.uniform(0.12, 0.3) * size
        centre = _polar(draws, 0.5 * reach)
        centre[1] = -draws.uniform(0.3, 0.7) * room[1]
        builder.add(ELLIPSOIDS, centre, (radius,) * 3)


def _table(builder: _Builder, reach: float, floor: float, size: float) -> None:
    draws = builder.draws
    centre = _polar(draws, reach * draws.uniform())
    tall, thick = draws.uniform(0.5, 0.8) * size, 0.03 * size
    turn = _about_y(draws.uniform(0, np.pi))
    half = np.array([draws.uniform(0.4, 0.9), 0, draws.uniform(0.3, 0.6)]) * size
    half[1] = thick
    builder.add(BOXES, centre + [0, floor - tall, 0], half, turn)
    leg = np.array([0.08 * size, 0.5 * tall, 0.08 * size])
    builder.add(CYLINDERS, centre + [0, floor - 0.5 * tall + _GAP, 0], leg)
    top = floor - tall - thick
    small = draws.uniform(0.1, 0.2) * size
    builder.add(
        draws.choice((BOXES, ELLIPSOIDS, CYLINDERS)), centre + [0, top - small + _GAP, 0],
        (small,) * 3, turn,
    )  # fmt: skip


def _stand(builder: _Builder, radius: float, floor: float, size: float) -> None:
    """A thing on the floor or a pile of two; few lean or float."""
    draws = builder.draws
    kind = draws.choice((BOXES, BOXES, ELLIPSOIDS, CYLINDERS))
    centre = _polar(draws, radius)
    half = draws.uniforms(3, low=0.18, high=0.6) * size
    half[1] = min(half[1], 0.5 * abs(floor))  # a pile ends below the ceiling
    if kind is not BOXES:
        half[2] = half[0]
    turn = _about_y(draws.uniform(0, np.pi))
    lift = draws.uniform(0.1, 0.8) * size if draws.chance(0.12) else -_GAP
    if kind is BOXES and draws.chance(0.2):
        turn = turn @ _about_x(draws.uniform(-0.5, 0.5))
    elif kind is CYLINDERS and draws.chance(0.2):  # lies on its side
        turn = turn @ _about_x(0.5 * np.pi)
        lift = -_GAP + half[0] - half[1]
    builder.add(kind, centre + [0, floor - half[1] - lift, 0], half, turn)
    if draws.chance(0.3) and lift < 0:
        small = half * draws.uniform(0.4, 0.8)
        other = draws.choice((BOXES, ELLIPSOIDS, CYLINDERS))
        if other is not BOXES:
            small[2] = small[0]
        above = floor - 2 * half[1] - small[1] + 2 * _GAP
        builder.add(other, centre + [0, above, 0], small, _about_y(draws.uniform(0, np.pi)))


def _polar(draws: Draws, radius: float) -> np.ndarray:
    angle = draws.uniform(0, 2 * np.pi)
    return np.array([radius * np.cos(angle), 0, radius * np.sin(angle)])


def _about_y(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _about_x(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
