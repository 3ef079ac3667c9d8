"""What stands in a street and is no object to detect: plants, poles, fences, walls, buildings, street furniture, as meshes.

Builders return meshes around the origin, standing on z = 0; what is long runs along x.
"""

from __future__ import annotations

import numpy as np

from vsuite.pointcloud.simulate.meshes import Mesh, boxes, leaves, loft, lump, merge, tubes


def tree(rng: np.random.Generator) -> Mesh:
    """A trunk with boughs and an irregular canopy of loose leaves; some are slim, some low."""
    height = rng.uniform(4, 13)
    crown = rng.uniform(0.5, 0.75) * height
    radius = rng.uniform(0.2, 0.4) * height
    base = height - crown
    lean = rng.normal(0, 0.15, 2)
    fork = np.array([*lean, base + 0.2 * crown])
    count = int(rng.integers(2, 5))
    angles = rng.uniform(0, 2 * np.pi, count)
    reach = rng.uniform(0.2, 0.55, count) * radius
    centres = np.stack([np.cos(angles) * reach, np.sin(angles) * reach, base + crown * rng.uniform(0.35, 0.7, count)], axis=1)
    radii = np.stack([*rng.uniform(0.5, 0.85, (2, count)) * radius, rng.uniform(0.28, 0.42, count) * crown], axis=1)
    thickness = rng.uniform(0.1, 0.3)
    wood = tubes([np.zeros(3), *[fork] * count], [fork, *centres], [(thickness, 0.7 * thickness)] + [(0.5 * thickness, 0.03)] * count)
    canopy = leaves(
        rng, centres, radii, int(rng.uniform(250, 500)), size=float(rng.uniform(0.12, 0.28)), reflectance=rng.uniform(0.35, 0.5)
    )
    return merge([wood, canopy])


def bush(rng: np.random.Generator) -> Mesh:
    """A rough lump with loose leaves, half a metre to two metres high."""
    height, radius = rng.uniform(0.5, 2.0), rng.uniform(0.4, 1.4)
    core = lump(rng, (0.8 * radius, 0.8 * radius, 0.5 * height), (0, 0, 0.4 * height), roughness=0.15, level=1)
    return merge([core, leaves(rng, [(0, 0, 0.45 * height)], [(radius, radius, 0.55 * height)], 60, size=0.09)])


def hedge(rng: np.random.Generator, length: float) -> Mesh:
    """A bumpy strip along x."""
    height, depth = rng.uniform(0.8, 2.2), rng.uniform(0.4, 1.0)
    x = np.linspace(-length / 2, length / 2, max(2, int(length / 0.6)))
    rings = np.zeros((len(x), 4, 3))
    rings[:, :, 0] = x[:, None]
    rings[:, :, 1] = np.array([-0.5, -0.45, 0.45, 0.5]) * depth
    rings[:, 1:3, 2] = height
    rings += rng.normal(0, 0.08, rings.shape)
    body = loft(rings, reflectance=float(rng.uniform(0.35, 0.5)))
    scale = np.array([[length / 2, depth / 2, height / 2]])
    return merge([body, leaves(rng, scale * [0, 0, 1], scale * [1, 1.2, 1.1], int(12 * length), size=0.08)])


def pole(rng: np.random.Generator) -> Mesh:
    """A lamp post, a sign, a traffic light, a power pole or a low bollard."""
    kind = rng.choice(["lamp", "sign", "light", "power", "bollard"], p=[0.3, 0.3, 0.1, 0.1, 0.2])
    if kind == "bollard":
        return tubes((0, 0, 0), (0, 0, rng.uniform(0.7, 1.1)), rng.uniform(0.05, 0.12), reflectance=rng.uniform(0.1, 0.7))
    height = {"lamp": rng.uniform(5, 9), "sign": rng.uniform(2, 3.2), "light": rng.uniform(2.8, 4.5), "power": rng.uniform(7, 10)}[kind]
    radius = {"lamp": 0.08, "sign": 0.035, "light": 0.07, "power": 0.14}[kind]
    parts = [tubes((0, 0, 0), (0, 0, height), (radius, 0.8 * radius), reflectance=rng.uniform(0.15, 0.4))]
    if kind == "lamp":
        reach = rng.uniform(0.8, 2.0)
        parts.append(tubes((0, 0, height), (0, -reach, height + 0.3), 0.04))
        parts.append(boxes((0.2, 0.6, 0.12), (0, -reach, height + 0.3)))
    if kind == "sign":  # the plate faces along the road
        parts.append(boxes((0.03, *rng.uniform(0.4, 0.9, 2)), (-0.05, 0, height - 0.3), 1.0))
    if kind == "light":
        parts.append(boxes((0.25, 0.3, 0.9), (-0.1, 0, height - 0.45), 0.1))
    return merge(parts)


def fence(rng: np.random.Generator, length: float) -> Mesh:
    """Wire mesh, railings or a wall along x, one to two metres high."""
    height = rng.uniform(0.8, 2.0)
    kind = rng.choice(["wire", "wall", "rails"])
    if kind == "wall":
        return boxes((length, 0.25, height), (0, 0, height / 2), rng.uniform(0.2, 0.5))
    x = np.linspace(-length / 2, length / 2, max(2, int(length / 2.5)))
    foot = np.stack([x, np.zeros_like(x), np.zeros_like(x)], axis=1)
    posts = tubes(foot, foot + np.array([0, 0, height]), 0.04, sides=5)
    if kind == "wire":
        return merge([posts, boxes((length, 0.01, 0.95 * height), (0, 0, height / 2), 0.3, 0.35)])
    z = np.linspace(0.3, 0.95, 3) * height
    return merge([posts, boxes([(length, 0.04, 0.12)] * 3, [(0, 0, h) for h in z], rng.uniform(0.2, 0.5))])


def building(rng: np.random.Generator, length: float) -> Mesh:
    """A block along x from y = 0 backwards, with windows, perhaps a gable roof and porches or balconies in front."""
    depth, storeys = rng.uniform(7, 14), int(rng.integers(1, 7))
    storey = rng.uniform(2.8, 3.5)
    height = storeys * storey
    parts = [boxes((length, depth, height), (0, depth / 2, height / 2), rng.uniform(0.2, 0.5))]
    spacing = rng.uniform(1.8, 3.5)
    columns = np.arange(-length / 2 + spacing / 2, length / 2 - 0.6, spacing)
    x, z = (grid.reshape(-1) for grid in np.meshgrid(columns, storey * (np.arange(storeys) + 0.55)))
    width, tall = rng.uniform(0.8, 1.4), rng.uniform(1.0, 1.6)
    panes = np.stack([x, np.full_like(x, -0.01), z], axis=1)
    parts.append(boxes(np.tile([width, 0.04, tall], (len(x), 1)), panes, 0.005))
    if rng.random() < 0.5:
        roof = np.array([[-0.4, 0], [depth + 0.4, 0], [depth / 2, rng.uniform(1.5, 4)]])
        rings = np.stack([np.column_stack([np.full(3, s * length / 2), roof[:, 0], roof[:, 1] + height]) for s in (-1, 1)])
        parts.append(loft(rings, reflectance=0.3))
    out = int(rng.integers(0, 4))
    if out:
        sizes = np.column_stack([rng.uniform(1, 3.5, out), rng.uniform(0.4, 1.4, out), rng.uniform(0.3, 2.8, out)])
        base = np.where(rng.random(out) < 0.5, 0, storey * rng.integers(0, storeys, out))
        centres = np.column_stack([rng.uniform(-0.4, 0.4, out) * length, -sizes[:, 1] / 2, base + sizes[:, 2] / 2])
        parts.append(boxes(sizes, centres, rng.uniform(0.2, 0.5)))
    return merge(parts)


def furniture(rng: np.random.Generator) -> Mesh:
    """A bin, cabinet, bench, cone, barrier, post box or container: what may be taken for a pedestrian or a car."""
    kind = rng.choice(["bin", "cabinet", "bench", "cone", "barrier", "column", "container"], p=[0.2, 0.2, 0.15, 0.15, 0.15, 0.1, 0.05])
    if kind == "cone":
        return merge([tubes((0, 0, 0), (0, 0, 0.7), (0.16, 0.03), reflectance=0.6), boxes((0.38, 0.38, 0.04), (0, 0, 0.02))])
    if kind in {"bin", "column"}:
        height, radius = (rng.uniform(0.8, 1.2), rng.uniform(0.2, 0.35)) if kind == "bin" else (rng.uniform(1.5, 3), rng.uniform(0.15, 0.6))
        return tubes((0, 0, 0), (0, 0, height), radius, sides=10, reflectance=rng.uniform(0.1, 0.5))
    if kind == "bench":
        sizes = [(1.6, 0.45, 0.08), (1.6, 0.08, 0.5), (0.08, 0.4, 0.45), (0.08, 0.4, 0.45)]
        return boxes(sizes, [(0, 0, 0.45), (0, -0.22, 0.75), (-0.7, 0, 0.22), (0.7, 0, 0.22)], 0.3)
    low, high = {
        "cabinet": ((0.5, 0.3, 0.9), (1.4, 0.6, 1.7)),
        "barrier": ((1.5, 0.3, 0.8), (2.2, 0.7, 1.1)),
        "container": ((3.5, 1.6, 1.3), (6, 2.4, 2.6)),
    }[kind]
    size = rng.uniform(low, high)
    return boxes(size, (0, 0, size[2] / 2), rng.uniform(0.15, 0.6))
