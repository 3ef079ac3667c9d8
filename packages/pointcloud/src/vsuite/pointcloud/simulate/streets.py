"""Random streets: uneven ground, kerbs, a side road, buildings and plants, parked and moving traffic, people.

A street is laid out along x in road coordinates and handed over as the lidar sees it: the origin is the sensor, x is its heading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsuite.pointcloud.simulate import objects, scenery
from vsuite.pointcloud.simulate.meshes import Mesh, boxes, merge, sheet

_REACH = 85.0  # metres of street on each side of the sensor
_SIDEWAYS = 60.0


@dataclass
class Street:
    """A scene around a sensor at the origin.

    Attributes:
        mesh: all triangles.
        owner: T int64, the object each triangle belongs to, -1 for scenery.
        boxes: M, 7 float32, `x y z length width height yaw`, z the centre; the exact extents of the objects.
        names: M classes, of `objects.CLASSES`.
    """

    mesh: Mesh
    owner: NDArray[np.int64]
    boxes: NDArray[np.float32]
    names: list[str]


@dataclass(frozen=True)
class _Layout:
    """Measures of a street, metres; the road's middle is y = 0."""

    lanes: tuple[float, ...]  # y of the middle of each lane; traffic drives on the right
    half_road: float  # from the middle to the kerb, parking strips included
    parking: float  # depth of the strip for parked cars at each kerb, 0 for none
    parking_angle: float  # of parked cars to the kerb, radians
    pavement: float  # width
    front: float  # y of the fences, hedges and buildings
    kerb: float  # height
    crossing: float  # x of the middle of the side road
    half_crossing: float  # half its width; negative where there is none
    busy: float  # how much traffic and how many people, about 1
    built: float  # share of the fronts with buildings
    green: float  # density of plants

    def on_crossing(self, x: NDArray[np.float64] | float, margin: float = 0.0) -> NDArray[np.bool_]:
        return np.abs(np.asarray(x) - self.crossing) < self.half_crossing + margin


def _layout(rng: np.random.Generator) -> _Layout:
    kinds = ((0.85, 0.4, 1.3, 5), (0.6, 1.0, 0.9, 8), (0.1, 1.2, 0.6, 20), (0.4, 0.5, 1.5, 20))  # town, suburb, country, square
    built, green, busy, setback = kinds[rng.choice(4, p=[0.3, 0.35, 0.15, 0.2])]
    lane = rng.uniform(2.9, 3.6)
    side = np.arange(int(rng.choice([1, 2], p=[0.7, 0.3]))) + 0.5
    angle = float(rng.choice([0, np.pi / 2, np.pi / 3], p=[0.7, 0.2, 0.1]))
    parking = 0.0 if rng.random() < 0.25 else rng.uniform(2.1, 2.5) if angle == 0 else rng.uniform(5.0, 5.6)
    half_road = len(side) * lane + parking
    pavement = rng.uniform(1.5, 4.5)
    return _Layout(
        lanes=tuple(float(y) for y in np.concatenate([-side, side]) * lane),
        half_road=half_road,
        parking=parking,
        parking_angle=angle,
        pavement=pavement,
        front=half_road + pavement + rng.uniform(0, 1) ** 1.5 * setback,
        kerb=rng.uniform(0.03, 0.18),
        crossing=rng.uniform(-60, 60),
        half_crossing=rng.uniform(3, 7) if rng.random() < 0.6 else -10.0,
        busy=busy * rng.uniform(0.5, 1.5),
        built=built,
        green=green * rng.uniform(0.5, 1.5),
    )


class _Terrain:
    """Height of the ground: a slope, a few long waves, and the kerbs."""

    def __init__(self, rng: np.random.Generator, layout: _Layout) -> None:
        self.layout = layout
        self.slope = rng.normal(0, [0.012, 0.012])
        self.waves = rng.normal(0, 1, (4, 2)) * [0.05, 0.06]  # radians a metre
        self.phases = rng.uniform(0, 2 * np.pi, 4)
        self.amplitudes = rng.normal(0, 0.12, 4)

    def raised(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether a place is behind a kerb."""
        return (np.abs(y) > self.layout.half_road) & ~self.layout.on_crossing(x)

    def height(self, x: NDArray[np.float64] | float, y: NDArray[np.float64] | float) -> NDArray[np.float64]:
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        waves = np.sin(x[..., None] * self.waves[:, 0] + y[..., None] * self.waves[:, 1] + self.phases) @ self.amplitudes
        return x * self.slope[0] + y * self.slope[1] + waves + self.layout.kerb * self.raised(x, y)

    def mesh(self, rng: np.random.Generator) -> Mesh:
        """The ground as a grid whose lines follow the kerbs."""
        layout = self.layout
        xs = np.arange(-_REACH - 15, _REACH + 15.1, 4.0)
        ys = np.arange(-_SIDEWAYS - 20, _SIDEWAYS + 20.1, 4.0)
        steps = np.array([-0.02, 0.02])
        edges = [layout.crossing + s * layout.half_crossing + steps for s in (-1, 1)] if layout.half_crossing > 0 else []
        xs = np.sort(np.concatenate([xs, *edges]))
        ys = np.sort(np.concatenate([ys, layout.half_road + steps, -layout.half_road + steps, np.array([-1, 1]) * layout.front]))
        x, y = np.meshgrid(xs, ys, indexing="ij")
        rough = np.where(np.abs(y) > layout.front - 0.1, 0.06, 0.008)
        heights = self.height(x, y) + rough * rng.standard_normal(x.shape)
        x, y = (xs[:-1, None] + xs[1:, None]) / 2, (ys[None, :-1] + ys[None, 1:]) / 2
        asphalt, paving, lawn = rng.uniform(0.28, 0.42), rng.uniform(0.3, 0.5), rng.uniform(0.35, 0.55)
        paved = np.where(np.abs(y) < layout.front, paving, lawn)
        return sheet(xs, ys, heights, np.where(self.raised(x, y), paved, asphalt))


class _Builder:
    """Collects meshes in road coordinates and keeps objects from standing in each other."""

    def __init__(self, rng: np.random.Generator, layout: _Layout, first_x: float) -> None:
        self.rng, self.layout, self.first_x = rng, layout, first_x
        self.terrain = _Terrain(rng, layout)
        self.meshes = [self.terrain.mesh(rng)]
        self.boxes: list[list[float]] = []
        self.names: list[str] = []
        self.owners = [-1]
        self.taken: list[tuple[float, float, float]] = []  # discs: x, y, radius

    def _discs(self, mesh: Mesh, x: float, y: float, yaw: float) -> list[tuple[float, float, float]]:
        """Discs that cover a footprint: one for people, several along a vehicle."""
        length, width = np.ptp(mesh.vertices[:, :2], axis=0)
        count = max(1, round(length / width))
        along = (np.arange(count) + 0.5) / count * length - length / 2
        radius = float(np.hypot(width, length / count) / 2)
        return [(float(x + a * np.cos(yaw)), float(y + a * np.sin(yaw)), radius) for a in along]

    def reserve(self, discs: list[tuple[float, float, float]]) -> bool:
        """Takes the discs if none of them meets one that is taken."""
        if self.taken:
            gap = np.array(self.taken)[None] - np.array(discs)[:, None]
            reach = np.array(self.taken)[None, :, 2] + np.array(discs)[:, None, 2]
            if (np.hypot(gap[..., 0], gap[..., 1]) < reach).any():
                return False
        self.taken += discs
        return True

    def free(self, x: float, y: float, radius: float) -> bool:
        return self.reserve([(x, y, radius)])

    def scenery(self, mesh: Mesh, x: float, y: float, yaw: float = 0.0) -> None:
        self.meshes.append(mesh.moved((x, y, float(self.terrain.height(x, y))), yaw))
        self.owners.append(-1)

    def thing(self, name: str, x: float, y: float, yaw: float) -> float:
        """Puts an object of class `name` at a place if that is free; gives its length, and that of a car where it was not."""
        if abs(x) > _REACH or x < self.first_x or abs(y) > _SIDEWAYS:
            return 4.5
        mesh = objects.BUILDERS[name](self.rng)
        length, width, height = np.ptp(mesh.vertices, axis=0)
        if not self.reserve(self._discs(mesh, x, y, yaw)):
            return float(length)
        ground = float(self.terrain.height(x, y))
        self.meshes.append(mesh.moved((x, y, ground), yaw))
        self.owners.append(len(self.names))
        self.names.append(name)
        self.boxes.append([x, y, ground + height / 2, length, width, height, yaw])
        return float(length)


def make_street(rng: np.random.Generator, *, height: float, ahead_only: bool = False) -> Street:
    """A random street.

    Args:
        height: of the sensor above the road, metres.
        ahead_only: leave out what is behind the sensor (for sweeps cropped to a camera's view).
    """
    layout = _layout(rng)
    street = _Builder(rng, layout, first_x=-6.0 if ahead_only else -_REACH)
    ego_y = float(rng.choice([y for y in layout.lanes if y < 0]) + rng.normal(0, 0.2))
    street.reserve([(dx, ego_y, 1.3) for dx in (-2.0, 0.0, 1.5)])  # the vehicle that carries the sensor
    for place in (_markings, _buildings, _driving, _parked, _side_traffic, _people, _roadside, _plants):
        place(street)
    heading = rng.normal(0, np.radians(5)) if rng.random() < 0.8 else rng.uniform(-np.pi, np.pi)
    if ahead_only:
        heading = float(np.clip(heading, -0.35, 0.35))
    origin = np.array([0, ego_y, float(street.terrain.height(0, ego_y)) + height])
    return _seen_from(street, origin, float(heading))


def _seen_from(street: _Builder, origin: NDArray[np.float64], heading: float) -> Street:
    mesh = merge(street.meshes)
    owner = np.repeat(street.owners, [len(part.triangles) for part in street.meshes])
    cos, sin = np.cos(heading), np.sin(heading)
    to_sensor = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    boxes_ = np.array(street.boxes, dtype=np.float64).reshape(-1, 7)
    boxes_[:, :3] = (boxes_[:, :3] - origin) @ to_sensor.T
    boxes_[:, 6] = (boxes_[:, 6] - heading + np.pi) % (2 * np.pi) - np.pi
    mesh = mesh.moved(-origin).moved(np.zeros(3), -heading)
    return Street(mesh, owner, boxes_.astype(np.float32), street.names)


def _along(rng: np.random.Generator, low: float, high: float, first: float = -_REACH) -> NDArray[np.float64]:
    """Places along the street with gaps between `low` and `high` metres."""
    gaps = rng.uniform(low, high, int(2 * _REACH / low) + 1)
    places = -_REACH + np.cumsum(gaps) - gaps[0] * rng.random()
    return places[(places < _REACH) & (places > first)]


def _markings(street: _Builder) -> None:
    """Dashes between lanes: thin bright plates that lie on the road."""
    lines = np.unique(np.round((np.array(street.layout.lanes)[1:] + np.array(street.layout.lanes)[:-1]) / 2, 3))
    if street.rng.random() < 0.3:
        return
    x, y = (grid.reshape(-1) for grid in np.meshgrid(np.arange(-50, 50, 9.0), lines))
    keep = ~street.layout.on_crossing(x, 2.0)
    x, y = x[keep], y[keep]
    z = street.terrain.height(x, y)
    street.meshes.append(boxes(np.tile([3.0, 0.15, 0.02], (len(x), 1)), np.stack([x, y, z], axis=1), 0.7))
    street.owners.append(-1)


def _buildings(street: _Builder) -> None:
    """Rows of buildings behind the fronts; where there are none, fences, hedges or walls."""
    rng, layout = street.rng, street.layout
    for side in (-1, 1):
        x = -_REACH
        while x < _REACH:
            length = rng.uniform(8, 26)
            middle = x + length / 2
            x += length + rng.uniform(0, 6)
            if layout.on_crossing(middle, length / 2 + 1) or middle + length / 2 < street.first_x:
                continue
            y = side * (layout.front + rng.uniform(0, 3))
            turned = 0.0 if side > 0 else np.pi
            if rng.random() < layout.built:
                street.scenery(scenery.building(rng, length), middle, y, turned)
            kind = rng.random()
            if layout.front < layout.half_road + layout.pavement + 1 and kind < 0.5:
                continue
            edge = side * min(layout.front - 0.2, layout.half_road + layout.pavement + 0.4)
            if kind < 0.35:
                street.scenery(scenery.fence(rng, length), middle, edge)
            elif kind < 0.35 + 0.3 * layout.green:
                street.scenery(scenery.hedge(rng, length), middle, edge)
    for side in (-1, 1):
        for x in _along(rng, 25, 60, street.first_x):  # taller ones behind, which the upper beams meet
            if rng.random() < 0.6 and not layout.on_crossing(x, 14):
                y = side * (layout.front + rng.uniform(17, 40))
                length, height = rng.uniform([12, 8], [28, 28])
                street.scenery(boxes((length, 10, height), (0, 0, height / 2), 0.35), x, y)
    for end in (-1, 1):
        if rng.random() < 0.4:  # the street bends or ends: a house stands across
            street.scenery(scenery.building(rng, 3 * layout.front), end * rng.uniform(40, _REACH), 0.0, -end * np.pi / 2)


def _vehicle_name(rng: np.random.Generator) -> str:
    return str(rng.choice(["Car", "Van", "Truck", "Cyclist"], p=[0.82, 0.08, 0.05, 0.05]))


def _driving(street: _Builder) -> None:
    """Traffic in the lanes, now and then a queue."""
    rng, layout = street.rng, street.layout
    for y in layout.lanes:
        queue = rng.random() < 0.15
        x = -_REACH + rng.uniform(0, 20)
        while x < _REACH:
            yaw = (0.0 if y < 0 else np.pi) + rng.normal(0, 0.03)
            if layout.on_crossing(x) and rng.random() < 0.5:
                yaw += rng.uniform(-1.5, 1.5)  # turning
            length = street.thing(_vehicle_name(rng), x, y + rng.normal(0, 0.2), yaw)
            x += length + (rng.uniform(1.0, 4.0) if queue else 4 + rng.exponential(28 / layout.busy))


def _parked(street: _Builder) -> None:
    """Vehicles in the parking strips, along the kerb or at an angle; and some on the pavement or in front gardens."""
    rng, layout = street.rng, street.layout
    for side in (-1, 1):
        crowded = rng.random() ** 0.5
        y = side * (layout.half_road - layout.parking / 2)
        along = -_REACH + rng.uniform(0, 5)
        while along < _REACH and layout.parking:
            turn = layout.parking_angle * side + (np.pi if rng.random() < 0.35 else 0)
            yaw = (0.0 if side < 0 else np.pi) + turn + rng.normal(0, 0.04)
            here = rng.random() < crowded and not layout.on_crossing(along, 5)
            name = str(rng.choice(["Car", "Van", "Truck"], p=[0.88, 0.1, 0.02])) if layout.parking_angle == 0 else "Car"
            length = street.thing(name, along, y + rng.normal(0, 0.1), yaw) if here else 4.5
            along += (length + rng.uniform(0.5, 1.6)) if layout.parking_angle == 0 else rng.uniform(2.5, 3.1)
    for _ in range(rng.poisson(3)):
        side = rng.choice([-1, 1])
        y = side * rng.uniform(layout.half_road + 1.2, max(layout.front - 1.2, layout.half_road + 1.3))
        street.thing("Car", rng.uniform(-60, 60), y, float(rng.choice([0, np.pi / 2, np.pi, -np.pi / 2]) + rng.normal(0, 0.15)))


def _side_traffic(street: _Builder) -> None:
    """Vehicles that drive, wait or are parked in the side road."""
    rng, layout = street.rng, street.layout
    if layout.half_crossing < 0:
        return
    for side in (-1, 1):
        y = layout.half_road + rng.uniform(3, 8)
        while y < _SIDEWAYS:
            lane = float(rng.choice([-1, 1]))
            yaw = np.pi / 2 * (1 if lane > 0 else -1) + rng.normal(0, 0.05)
            x = layout.crossing + lane * rng.uniform(0.4, 0.6) * layout.half_crossing
            y += street.thing(_vehicle_name(rng), x, side * y, yaw) + rng.exponential(12 / layout.busy)


def _people(street: _Builder) -> None:
    """People on the pavements, alone or in groups, and some who cross; cyclists at the kerbs; more of them near the sensor."""
    rng, layout = street.rng, street.layout
    for _ in range(rng.poisson(13 * layout.busy)):
        crossing = rng.random() < 0.15
        side = rng.choice([-1, 1])
        x = rng.normal(8, 22)
        y = rng.uniform(-1, 1) * layout.half_road if crossing else side * (layout.half_road + rng.uniform(0.3, layout.pavement))
        yaw = rng.choice([0, np.pi]) + rng.normal(0, 0.25) + (np.pi / 2 if crossing else 0)
        if rng.random() < 0.15:
            yaw = rng.uniform(-np.pi, np.pi)
        for k in range(int(rng.choice([1, 2, 3, 4], p=[0.6, 0.25, 0.1, 0.05]))):
            aside = 0.75 * k
            street.thing("Pedestrian", x - aside * np.sin(yaw) + rng.normal(0, 0.15), y + aside * np.cos(yaw), float(yaw))
    for _ in range(rng.poisson(5 * layout.busy)):
        side = rng.choice([-1, 1])
        y = side * (layout.half_road - layout.parking + rng.uniform(-1.6, 0.3) + (rng.random() < 0.3) * (layout.parking + 1))
        street.thing("Cyclist", rng.normal(8, 22), y, float((0 if side < 0 else np.pi) + rng.normal(0, 0.1)))


def _roadside(street: _Builder) -> None:
    """Poles, street furniture and parked bicycles on the pavements."""
    rng, layout = street.rng, street.layout
    for side in (-1, 1):
        turned = 0.0 if side < 0 else np.pi
        for x in _along(rng, 10, 30, street.first_x):
            y = side * (layout.half_road + 0.4)
            if not layout.on_crossing(x, 1) and street.free(x, y, 0.2):
                street.scenery(scenery.pole(rng), x, y, turned)
        for x in _along(rng, 6, 35, street.first_x):
            y = side * (layout.half_road + rng.uniform(0.5, layout.pavement))
            if layout.on_crossing(x, 2) or not street.free(x, y, 0.8):
                continue
            mesh = objects.bicycle(rng) if rng.random() < 0.25 else scenery.furniture(rng)
            street.scenery(mesh, x, y, float(rng.choice([0, np.pi / 2]) + rng.normal(0, 0.2)))


def _plants(street: _Builder) -> None:
    """Trees along the kerbs and behind the fronts, bushes."""
    rng, layout = street.rng, street.layout
    for side in (-1, 1):
        for x in _along(rng, 6 / layout.green, 20 / layout.green, street.first_x):
            kerbside = rng.random() < 0.4
            y = side * (layout.half_road + 0.8 if kerbside else layout.front + rng.uniform(0, 14))
            if not layout.on_crossing(x, 2) and street.free(x, y, 0.4):
                street.scenery(scenery.tree(rng), x, y, rng.uniform(0, 6))
        for x in _along(rng, 5 / layout.green, 18 / layout.green, street.first_x):
            y = side * (layout.half_road + layout.pavement + rng.uniform(0.2, 9))
            if not layout.on_crossing(x, 2) and street.free(x, y, 0.5):
                street.scenery(scenery.bush(rng), x, y, rng.uniform(0, 6))
