"""What a street is searched for: cars, vans, trucks, pedestrians and cyclists of varied shapes, as meshes.

Each builder returns a mesh that faces +x, stands on z = 0 and is centred in x and y, so that its extents are its box.
The sizes follow what the labels of the public driving data sets show.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vsuite.pointcloud.simulate.meshes import Mesh, boxes, ellipsoid, loft, merge, tubes

CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Cyclist")
"""The labelled classes. KITTI's meaning: a Van is larger than a Car and may count as one; Truck includes buses."""

# Outlines of bodies from rear to front: x as a share of the length, the height of the belt (where the windows start) and of
# the top as shares of the height. Where both are near, there is no window: a bonnet or a boot.
_OUTLINES = {
    "saloon": [
        (-0.5, 0.45, 0.5), (-0.47, 0.62, 0.66), (-0.36, 0.64, 0.7), (-0.19, 0.64, 0.97),
        (0.02, 0.63, 1.0), (0.1, 0.62, 0.98), (0.25, 0.6, 0.68), (0.44, 0.53, 0.59), (0.5, 0.36, 0.42),
    ],
    "hatchback": [
        (-0.5, 0.42, 0.48), (-0.475, 0.6, 0.68), (-0.38, 0.63, 0.94), (-0.2, 0.62, 1.0),
        (0.02, 0.61, 1.0), (0.13, 0.6, 0.95), (0.29, 0.58, 0.67), (0.45, 0.5, 0.57), (0.5, 0.34, 0.4),
    ],
    "estate": [
        (-0.5, 0.45, 0.52), (-0.48, 0.6, 0.7), (-0.42, 0.63, 0.95), (-0.2, 0.62, 1.0),
        (0.02, 0.61, 1.0), (0.11, 0.6, 0.96), (0.27, 0.58, 0.66), (0.45, 0.51, 0.58), (0.5, 0.36, 0.42),
    ],
    "off-roader": [
        (-0.5, 0.5, 0.56), (-0.49, 0.62, 0.72), (-0.45, 0.64, 0.97), (-0.2, 0.64, 1.0),
        (0.04, 0.63, 1.0), (0.12, 0.62, 0.97), (0.22, 0.61, 0.69), (0.46, 0.57, 0.63), (0.5, 0.4, 0.46),
    ],
    "van": [
        (-0.5, 0.5, 0.93), (-0.49, 0.55, 0.99), (-0.3, 0.55, 1.0), (0.0, 0.55, 1.0),
        (0.15, 0.54, 1.0), (0.24, 0.53, 0.96), (0.38, 0.5, 0.58), (0.48, 0.42, 0.48), (0.5, 0.3, 0.36),
    ],
    "minibus": [
        (-0.5, 0.5, 0.9), (-0.49, 0.52, 0.98), (-0.3, 0.52, 1.0), (0.0, 0.52, 1.0),
        (0.3, 0.51, 0.99), (0.4, 0.5, 0.9), (0.47, 0.45, 0.56), (0.49, 0.38, 0.44), (0.5, 0.25, 0.31),
    ],
}  # fmt: skip
_TYRE, _RETROREFLECTOR, _UNDERBODY, _GLASS = 0.03, 1.0, 0.05, 2e-4


def _paint(rng: np.random.Generator) -> float:
    """Reflectance of lacquer: dark (most of the light is reflected away, so that parts of such cars give no return), medium or light."""
    low, high = ((1e-3, 0.05), (0.05, 0.3), (0.3, 0.6))[rng.choice(3, p=[0.3, 0.4, 0.3])]
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _wheels(places: NDArray[np.float64], radius: float, half_width: float, thickness: float) -> Mesh:
    """Wheels on both sides at the positions `places` along x, their outer faces at `half_width`, with brighter rims."""
    x = np.repeat(places, 2)
    side = np.tile([-1.0, 1.0], len(places))
    outer = np.stack([x, side * half_width, np.full_like(x, radius)], axis=1)
    inner = outer - np.stack([np.zeros_like(x), side * thickness, np.zeros_like(x)], axis=1)
    rim = tubes(inner, outer + [0, 1e-3, 0] * side[:, None], radius * 0.6, sides=8, reflectance=0.45)
    return merge([tubes(inner, outer, radius, sides=12, reflectance=_TYRE), rim])


def _body(outline: list[tuple[float, float, float]], size: NDArray[np.float64], clearance: float, paint: float, glass: float) -> Mesh:
    """The skin of a vehicle over ten-cornered cross-sections: sill, flank, belt, roof edge, roof."""
    length, width, height = size
    x, belt, top = (np.array(outline) * [length, height, height]).T
    half = 0.985 * width / 2 * (1 - 0.14 * np.abs(x / length * 2) ** 6)  # ends are rounded in plan
    cabin = np.clip((top - belt) / (0.3 * height), 0, 1)
    upper = half * (0.94 - 0.14 * cabin)
    sill = np.full_like(x, clearance)
    flank = np.minimum(clearance + 0.45 * (belt - clearance), belt)
    right = [(0.86 * half, sill), (half, flank), (0.97 * half, belt), (upper, top - 0.03 * height), (0.65 * upper, top)]
    sections = [(-y, z) for y, z in right] + [(y, z) for y, z in right[::-1]]
    rings = np.stack([np.stack([x, y, z], axis=1) for y, z in sections], axis=1)  # R 10 3, from the sill on the right over the roof

    between = np.minimum(cabin[:-1], cabin[1:]) > 0.5  # stations with windows on both sides of them
    screen = (np.abs(cabin[:-1] - cabin[1:]) > 0.5) & (np.abs(np.diff(top)) > 0.1 * height)  # windscreen and rear window
    window = np.zeros((len(x) - 1, 10), dtype=bool)
    window[:, [2, 6]] = (between | screen)[:, None]
    window[:, [3, 4, 5]] = screen[:, None]
    reflectance = np.where(window, _GLASS, paint)
    reflectance[:, 9] = _UNDERBODY
    return loft(rings, reflectance=reflectance, opacity=np.where(window, glass, 1.0))


def _vehicle(rng: np.random.Generator, kind: str, size: NDArray[np.float64]) -> Mesh:
    length, width, height = size
    radius = float(rng.uniform(0.29, 0.36) * (1 + 0.12 * (height > 1.75)))
    paint = _paint(rng)
    axles = np.array([-rng.uniform(0.28, 0.33), rng.uniform(0.29, 0.33)]) * length
    body = _body(_OUTLINES[kind], size, rng.uniform(0.16, 0.3), paint, glass=float(rng.uniform(0.3, 0.95)))
    lamps_z, plate_z = 0.38 * height, 0.28 * height
    lamp_y = 0.31 * width
    places = [(s * 0.492 * length, y, z) for s in (-1, 1) for y, z in ((-lamp_y, lamps_z), (lamp_y, lamps_z), (0, plate_z))]
    sizes = [(0.016 * length, 0.25, 0.12), (0.016 * length, 0.25, 0.12), (0.016 * length, 0.5, 0.11)] * 2
    bright = boxes(sizes, places, np.tile([0.7, 0.7, _RETROREFLECTOR], 2))
    return merge([body, _wheels(axles, radius, width / 2, 0.2), bright]).fitted(size)


def car(rng: np.random.Generator) -> Mesh:
    """A saloon, hatchback, estate or off-roader, 4.2 +- 0.4 m long."""
    kind = str(rng.choice(["saloon", "hatchback", "estate", "off-roader"], p=[0.3, 0.35, 0.2, 0.15]))
    length = np.clip(rng.normal({"saloon": 4.5, "hatchback": 3.9, "estate": 4.4, "off-roader": 4.5}[kind], 0.3), 3.2, 5.2)
    width = np.clip(1.77 + 0.12 * (length - 4.2) + rng.normal(0, 0.07), 1.5, 2.05)
    height = np.clip(rng.normal(1.72 if kind == "off-roader" else 1.5, 0.07), 1.32, 1.95)
    return _vehicle(rng, kind, np.array([length, width, height]))


def van(rng: np.random.Generator) -> Mesh:
    """A delivery van or minibus, 5.0 +- 0.5 m long."""
    size = np.array([rng.normal(5.0, 0.45), rng.normal(1.95, 0.08), rng.normal(2.15, 0.2)])
    return _vehicle(rng, str(rng.choice(["van", "minibus"])), np.clip(size, [4.0, 1.7, 1.8], [6.8, 2.2, 2.8]))


def truck(rng: np.random.Generator) -> Mesh:
    """A lorry (cab and cargo body, closed or flat) or a bus."""
    size = np.clip([rng.normal(8.5, 2.0), rng.normal(2.5, 0.12), rng.normal(3.2, 0.3)], [5.5, 2.1, 2.5], [13.0, 2.8, 4.0])
    length, width, height = size
    wheels = _wheels(np.array([-0.36, -0.25, 0.36]) * length, 0.48, 0.98 * width / 2, 0.3)
    floor = 0.95
    paint = _paint(rng)
    if rng.random() < 0.3:  # a bus: one body with a band of windows
        belt = 0.45 * height
        parts = boxes(
            [(length, width, belt - 0.35), (length * 0.995, width * 0.97, 0.35 * height), (length, width, 0.2 * height)],
            [(0, 0, 0.35 + (belt - 0.35) / 2), (0, 0, belt + 0.175 * height), (0, 0, 0.9 * height)],
            [paint, _GLASS, paint],
            [1, 0.6, 1],
        )
        return merge([parts, wheels]).fitted(size)
    cab = min(2.2, 0.3 * length)
    cab_height = height * rng.uniform(0.75, 1.0)
    cargo_height = height if rng.random() < 0.75 else floor + rng.uniform(0.2, 0.8)
    rear = length - cab - 0.3
    parts = boxes(
        [
            (cab, 0.96 * width, 0.5 * cab_height - 0.4), (0.92 * cab, 0.92 * width, 0.36 * cab_height),
            (cab, 0.94 * width, 0.14 * cab_height),
            (rear, width, cargo_height - floor), (length - 0.4, 0.8, 0.25),
        ],
        [
            (length / 2 - cab / 2, 0, 0.25 * cab_height + 0.2), (length / 2 - 0.54 * cab, 0, 0.68 * cab_height),
            (length / 2 - cab / 2, 0, 0.93 * cab_height),
            (-length / 2 + rear / 2, 0, (floor + cargo_height) / 2), (0, 0, floor - 0.15),
        ],
        [paint, _GLASS, paint, rng.uniform(0.05, 0.6), _UNDERBODY],
        [1, 0.7, 1, 1, 1],
    )  # fmt: skip
    return merge([parts, wheels]).fitted(size)


def _person(rng: np.random.Generator, height: float, joints: dict[str, NDArray[np.float64]], clothes: float) -> Mesh:
    """Limbs, trunk and head around the given joints; left and right are rows of an array."""
    build = rng.uniform(0.85, 1.25) * height / 1.75
    hips, knees, feet = joints["hips"], joints["knees"], joints["feet"]
    shoulders, elbows, hands = joints["shoulders"], joints["elbows"], joints["hands"]
    toes = feet + np.array([0.17, 0, 0.0]) * height / 1.75
    limbs = [(hips, knees, 0.085, 0.06), (knees, feet, 0.06, 0.045), (feet, toes, 0.05, 0.04), (shoulders, elbows, 0.055, 0.045)]
    limbs.append((elbows, hands, 0.045, 0.04))
    starts = np.concatenate([limb[0] for limb in limbs])
    ends = np.concatenate([limb[1] for limb in limbs])
    radii = np.repeat([limb[2:] for limb in limbs], 2, axis=0) * build
    trousers = float(rng.uniform(0.1, 0.6))
    tone = np.repeat([trousers, trousers, 0.2, clothes, clothes], 2)
    pelvis, chest = hips.mean(axis=0), shoulders.mean(axis=0)
    middle = (pelvis + chest) / 2
    trunk_axis = chest - pelvis
    neck = chest + trunk_axis / np.linalg.norm(trunk_axis) * 0.08 * height / 1.75
    head = joints["head"]
    trunk = tubes(
        [pelvis * [1, 0, 1], middle * [1, 0, 1]], [middle * [1, 0, 1], chest * [1, 0, 1]], np.array([[0.15, 0.155], [0.155, 0.18]]) * build,
        sides=10, reflectance=clothes,
    )  # fmt: skip
    if abs(trunk_axis[0]) < 0.1:  # upright: chests are flatter than they are wide
        trunk.vertices[:, 0] = middle[0] + 0.6 * (trunk.vertices[:, 0] - middle[0])
    skull = ellipsoid(np.array([0.1, 0.08, 0.125]) * height / 1.75, head, reflectance=0.35)
    return merge([tubes(starts, ends, radii, reflectance=tone), trunk, tubes(chest, neck, 0.05 * build, reflectance=0.35), skull])


def pedestrian(rng: np.random.Generator) -> Mesh:
    """An adult or a child who walks or stands, some with a rucksack, a skirt or a bag."""
    height = float(np.clip(rng.normal(1.72, 0.09), 1.45, 2.0)) if rng.random() < 0.9 else float(rng.uniform(1.05, 1.45))
    k = height / 1.75
    phase = rng.uniform(0, 2 * np.pi)
    stride = rng.uniform(0.15, 0.5) if rng.random() < 0.75 else rng.uniform(0, 0.08)
    swing = stride * np.sin(phase) * np.array([1, -1])  # of the legs, radians; the arms swing against them
    bend = np.maximum(0.05, 0.9 * stride * np.cos(phase) * np.array([1, -1]))  # of the knees
    side = np.array([1, -1])
    hips = np.stack([np.zeros(2), 0.095 * k * side, np.full(2, 0.93 * k)], axis=1)
    knees = hips + 0.45 * k * np.stack([np.sin(swing), np.zeros(2), -np.cos(swing)], axis=1)
    feet = knees + 0.42 * k * np.stack([np.sin(swing - bend), np.zeros(2), -np.cos(swing - bend)], axis=1)
    shoulders = np.stack([np.full(2, 0.03 * k), 0.2 * k * side, np.full(2, 1.45 * k)], axis=1)
    arms = -0.8 * swing + rng.normal(0, 0.1, 2)
    forearms = arms + rng.uniform(0.1, 0.6) + (rng.random(2) < 0.15) * 1.2  # a hand may hold a telephone
    out = rng.uniform(0.05, 0.2)
    elbows = shoulders + 0.3 * k * np.stack([np.sin(arms), out * side, -np.cos(arms)], axis=1)
    hands = elbows + 0.28 * k * np.stack([np.sin(forearms), 0.3 * out * side, -np.cos(forearms)], axis=1)
    head = np.array([0.05 * k, 0, 1.63 * k])
    clothes = float(rng.uniform(0.1, 0.7))
    joints = {"hips": hips, "knees": knees, "feet": feet, "shoulders": shoulders, "elbows": elbows, "hands": hands, "head": head}
    parts = [_person(rng, height, joints, clothes)]
    if rng.random() < 0.25:
        parts.append(boxes((0.18 * k, 0.3 * k, 0.45 * k), (-0.17 * k, 0, 1.22 * k), rng.uniform(0.1, 0.6)))
    if rng.random() < 0.2:
        parts.append(tubes((0, 0, 1.0 * k), (0, 0, 0.5 * k), (0.17 * k, 0.27 * k), sides=10, reflectance=clothes))
    if rng.random() < 0.15:
        parts.append(boxes((0.3 * k, 0.12, 0.3), hands[0] - [0, 0, 0.2], rng.uniform(0.1, 0.6)))
    whole = merge(parts)
    return whole.fitted(np.ptp(whole.vertices, axis=0) * [1, 1, height / np.ptp(whole.vertices[:, 2])])


def bicycle(rng: np.random.Generator) -> Mesh:
    """A bicycle without a rider; its wheels stand at x = -0.52 and 0.52 with radius 0.34 m."""
    radius, rear, front = 0.34, np.array([-0.52, 0, 0.34]), np.array([0.52, 0, 0.34])
    angles = np.linspace(0, 2 * np.pi, 15)
    circle = np.stack([np.cos(angles), np.zeros(15), np.sin(angles)], axis=1) * (radius - 0.02)
    rims = tubes(
        np.concatenate([rear + circle[:-1], front + circle[:-1]]), np.concatenate([rear + circle[1:], front + circle[1:]]), 0.022, sides=4,
        reflectance=0.1,
    )  # fmt: skip
    crank, seat, steer, bar = (np.array(p) for p in ((-0.07, 0, 0.3), (-0.25, 0, 0.92), (0.36, 0, 0.85), (0.34, 0, 1.02)))
    left, right = bar + np.array([[-0.05, 0.28, 0], [-0.05, -0.28, 0]])
    lines = [(rear, crank), (rear, seat), (crank, seat), (crank, steer), (seat * [1, 1, 0.93], steer), (front, bar), (left, right)]
    frame = tubes([a for a, _ in lines], [b for _, b in lines], 0.025, sides=5, reflectance=float(rng.uniform(0.1, 0.6)))
    saddle = boxes([(0.26, 0.14, 0.05), (0.02, 0.06, 0.06)], [seat, seat - [0.12, 0, 0.15]], [0.1, _RETROREFLECTOR])
    return merge([rims, frame, saddle])


def cyclist(rng: np.random.Generator) -> Mesh:
    """A rider on a bicycle, upright or bent, about 1.75 x 0.6 x 1.75 m."""
    height = float(np.clip(rng.normal(1.72, 0.08), 1.5, 1.95))
    k = height / 1.75
    lean = rng.uniform(0.15, 0.85)
    side = np.array([1, -1])
    turn = rng.uniform(0, 2 * np.pi) + np.array([0, np.pi])
    hips = np.array([-0.23, 0, 0.97]) + np.stack([np.zeros(2), 0.1 * k * side, np.zeros(2)], axis=1)
    feet = np.array([-0.07, 0, 0.3]) + np.stack([0.17 * np.cos(turn), 0.12 * side, 0.17 * np.sin(turn)], axis=1)
    knees = _knees(hips, feet, 0.45 * k)
    trunk = 0.52 * k * np.array([np.sin(lean), 0, np.cos(lean)])
    shoulders = np.array([-0.23, 0, 0.97]) + trunk + np.stack([np.zeros(2), 0.2 * k * side, np.zeros(2)], axis=1)
    hands = np.stack([np.full(2, 0.3), 0.25 * side, np.full(2, 1.04)], axis=1)
    elbows = (shoulders + hands) / 2 + [0, 0, -0.08]
    elbows[:, 1] += 0.05 * side
    head = shoulders.mean(axis=0) + np.array([0.08 + 0.06 * np.sin(lean), 0, 0.2]) * k
    joints = {"hips": hips, "knees": knees, "feet": feet, "shoulders": shoulders, "elbows": elbows, "hands": hands, "head": head}
    whole = merge([bicycle(rng), _person(rng, height, joints, float(rng.uniform(0.1, 0.7)))])
    return whole.fitted(np.ptp(whole.vertices, axis=0) * rng.uniform(0.94, 1.06))


def _knees(hips: NDArray[np.float64], feet: NDArray[np.float64], limb: float) -> NDArray[np.float64]:
    """Knees ahead of the line from hip to foot, for thighs and shanks of length `limb`."""
    line = feet - hips
    distance = np.linalg.norm(line, axis=1, keepdims=True)
    forward = np.stack([-line[:, 2], np.zeros(2), line[:, 0]], axis=1)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    return (hips + feet) / 2 + forward * np.sqrt(np.maximum(limb**2 - (distance / 2) ** 2, 0))


BUILDERS: dict[str, Callable[[np.random.Generator], Mesh]] = {
    "Car": car,
    "Van": van,
    "Truck": truck,
    "Pedestrian": pedestrian,
    "Cyclist": cyclist,
}
"""One builder a class of `CLASSES`."""
