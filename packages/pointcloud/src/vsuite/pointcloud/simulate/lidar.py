"""A spinning lidar: which rays it sends, what comes back from a scene of triangles, and with what noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError, unknown
from vsuite.pointcloud.simulate.meshes import Mesh

_PASSES = 3  # how often a ray may pass glass or a wire fence before it counts as lost
_FOCUS = 15.0  # metres: nearer than this, the answer of a surface does not grow
_DARKEST = 2e-4  # what even glass and black lacquer reflect
_MISSED = np.iinfo(np.uint32).max  # Embree's primitive of a ray that met nothing


@dataclass(frozen=True)
class Sensor:
    """A spinning lidar.

    Attributes:
        elevations: angle of each beam above the horizon, degrees, from the top.
        azimuth_step: degrees between two firings.
        height: of the sensor above the road, metres.
        min_range, max_range: of a return, metres.
        range_noise: standard deviation of the range, metres.
        angle_noise: standard deviation of the beams' elevations from sweep to sweep, degrees.
        dropout: share of returns lost at any range and angle.
        power: of the laser; a surface of reflectance r at distance d, met under the cosine c, answers with probability
            1 - exp(-power * r * c / d^2), so that returns grow rare with range, at grazing angles and on black cars. Nearer than
            15 m the answer does not grow any more: the optics are focused further away.
        intensity_maximum: the largest intensity, 1 for KITTI and 255 for nuScenes.
        intensity_gain, intensity_gamma: intensity = maximum * gain * reflectance ** gamma, before rounding and clipping.
        intensity_step: intensities are multiples of this.
        roof: of the vehicle below the sensor, which hides the ground nearby: rear and front end in x, half its width, depth
            below the sensor, metres; or nothing.
        camera: keep only what KITTI's colour camera, which looks ahead, sees: KITTI labels nothing else.
    """

    elevations: tuple[float, ...]
    azimuth_step: float
    height: float
    min_range: float = 1.0
    max_range: float = 80.0
    range_noise: float = 0.02
    angle_noise: float = 0.02
    dropout: float = 0.02
    power: float = 2e5
    intensity_maximum: float = 1.0
    intensity_gain: float = 1.0
    intensity_gamma: float = 1.0
    intensity_step: float = 0.01
    roof: tuple[float, float, float, float] | None = None
    camera: bool = False

    def __post_init__(self) -> None:
        if not self.elevations or max(np.abs(self.elevations)) >= 90:
            raise InputError(f"elevations: {self.elevations} given; one or more angles between -90 and 90 degrees are needed")
        if not 0 < self.azimuth_step <= 90:
            raise InputError(f"azimuth_step: {self.azimuth_step} degrees given; allowed is more than 0 and up to 90")
        if not 0 <= self.min_range < self.max_range:
            raise InputError(f"min_range {self.min_range} and max_range {self.max_range}: 0 <= min_range < max_range is needed")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: {self.dropout} given; allowed is 0 up to, not including, 1")
        if min(self.height, self.power) <= 0 or min(self.range_noise, self.angle_noise) < 0:
            raise InputError("height and power must be positive, range_noise and angle_noise not negative")


@dataclass(frozen=True)
class Randomisation:
    """How far sweeps differ from the sensor's values, so that detectors do not learn one sensor by heart. All zero: not at all.

    Attributes:
        height: largest change of the height, metres.
        tilt: standard deviation of roll and pitch, degrees. The rays tilt; points and boxes stay in the level frame.
        noise, dropout: largest relative change of `range_noise` and of `dropout` and `power`; 0.5 means from half to 1.5 times.
        halved_beams: probability that a sweep has every second beam only.
    """

    height: float = 0.08
    tilt: float = 0.5
    noise: float = 0.4
    dropout: float = 0.5
    halved_beams: float = 0.0

    def __post_init__(self) -> None:
        if min(self.height, self.tilt) < 0 or not 0 <= self.noise < 1 or not 0 <= self.dropout < 1 or not 0 <= self.halved_beams <= 1:
            raise InputError(f"{self}: height and tilt must not be negative, noise and dropout lie in [0, 1), halved_beams in [0, 1]")

    def apply(self, sensor: Sensor, rng: np.random.Generator) -> tuple[Sensor, tuple[float, float]]:
        """One sweep's sensor, and its roll and pitch in radians."""
        shift, noise, loss, power = rng.uniform(-1, 1, 4)
        halved = rng.random() < self.halved_beams
        first = int(rng.integers(2))
        roll, pitch = np.radians(self.tilt) * rng.standard_normal(2)
        changed = replace(
            sensor,
            height=sensor.height + self.height * shift,
            range_noise=sensor.range_noise * (1 + self.noise * noise),
            dropout=min(0.99, sensor.dropout * (1 + self.dropout * loss)),
            power=sensor.power * (1 + self.dropout * power),
            elevations=sensor.elevations[first::2] if halved and len(sensor.elevations) > 1 else sensor.elevations,
        )
        return changed, (float(roll), float(pitch))


@dataclass(frozen=True)
class Profile:
    """A sensor and how its sweeps vary; `dataclasses.replace` makes variants."""

    sensor: Sensor
    randomisation: Randomisation = field(default_factory=Randomisation)


def _evenly(top: float, bottom: float, beams: int) -> tuple[float, ...]:
    return tuple(float(angle) for angle in np.linspace(top, bottom, beams))


# KITTI's sensor is mounted a degree higher than its data sheet (+2 to -24.9) has it: these are the angles of the recorded rings.
_HDL64 = Sensor(
    _evenly(2.9, -7.45, 32) + _evenly(-7.9, -24.3, 32), azimuth_step=0.1796, height=1.73, max_range=80.0, dropout=0.02, intensity_gain=1.2
)
_HDL32 = Sensor(
    _evenly(10.67, -30.67, 32), azimuth_step=0.332, height=1.84, max_range=100.0, dropout=0.02, power=1.5e5,
    intensity_maximum=255.0, intensity_gain=1.55, intensity_gamma=2.5, intensity_step=1.0, roof=(-1.05, 0.85, 0.62, 0.37),
)  # fmt: skip
_VLP16 = Sensor(
    _evenly(15.0, -15.0, 16), azimuth_step=0.2, height=1.8, max_range=100.0, range_noise=0.03, dropout=0.03, power=1e5,
    intensity_maximum=255.0, intensity_gain=1.55, intensity_gamma=2.5, intensity_step=1.0,
)  # fmt: skip
PROFILES = {
    "hdl64": Profile(_HDL64),
    "hdl64_front": Profile(replace(_HDL64, camera=True)),
    "hdl32": Profile(_HDL32),
    "vlp16": Profile(_VLP16),
}
"""KITTI's sensor (all around, and in the camera's view as KITTI labels it), nuScenes' (in our frame) and a small one."""


def find_profile(profile: str | Profile) -> Profile:
    """The profile of a name of `PROFILES`; a `Profile` passes."""
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise unknown("sensor profile", profile, PROFILES)
    return PROFILES[profile]


@dataclass
class Returns:
    """What came back of one turn, N returns in the order of beam, then azimuth.

    Attributes:
        points: N, 4 float32: x forward, y left, z up from the sensor in metres, intensity.
        beam: N int64, from the top.
        triangle: N int64, the triangle of the scene that was hit.
    """

    points: NDArray[np.float32]
    beam: NDArray[np.int64]
    triangle: NDArray[np.int64]


def ray_directions(
    sensor: Sensor, rng: np.random.Generator, roll: float = 0.0, pitch: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit directions of one turn (R, 3) and their beams (R): beams times floor(360 / azimuth_step) rays, fewer with `camera` or `roof`."""
    steps = int(360 / sensor.azimuth_step + 1e-6)
    azimuth = np.radians(180 - sensor.azimuth_step * (np.arange(steps) + rng.random()))  # clockwise, as the sensors turn
    if sensor.camera:
        azimuth = azimuth[np.abs(azimuth) < np.radians(45)]
    elevation = np.radians(np.array(sensor.elevations) + sensor.angle_noise * rng.standard_normal(len(sensor.elevations)))
    stagger = np.radians(sensor.azimuth_step) * rng.random(len(elevation))  # beams do not fire in one plane
    angle = azimuth[None, :] + stagger[:, None]
    cos, sin = np.cos(elevation)[:, None], np.broadcast_to(np.sin(elevation)[:, None], angle.shape)
    directions = np.stack([cos * np.cos(angle), cos * np.sin(angle), sin], axis=-1).reshape(-1, 3)
    beam = np.repeat(np.arange(len(elevation)), len(azimuth))
    if sensor.roof is not None:
        free = ~_meets_roof(directions, sensor.roof)
        directions, beam = directions[free], beam[free]
    return (directions @ _tilt(roll, pitch).T).astype(np.float32), beam


def _meets_roof(directions: NDArray[np.float64], roof: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    rear, front, half_width, depth = roof
    scale = depth / np.maximum(-directions[:, 2], 1e-6)
    x, y = directions[:, 0] * scale, directions[:, 1] * scale
    return (rear < x) & (x < front) & (np.abs(y) < half_width)


def _tilt(roll: float, pitch: float) -> NDArray[np.float64]:
    """Rotation about x by `roll`, then about y by `pitch` (positive: the nose goes down)."""
    (cr, sr), (cp, sp) = (np.cos(roll), np.sin(roll)), (np.cos(pitch), np.sin(pitch))
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]]) @ about_x


def in_camera_view(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which points (N, 3 or more) KITTI's left colour camera sees: 1242 x 375 pixels, focal length 721.5."""
    x, y, z = points[:, 0] - 0.27, points[:, 1], points[:, 2] + 0.08
    column, row = 609.6 * x - 721.5 * y, 172.9 * x - 721.5 * z  # pixels times depth
    return (x > 0) & (column >= 0) & (column < 1242 * x) & (row >= 0) & (row < 375 * x)


def scan(scene: Mesh, sensor: Sensor, rng: np.random.Generator, *, roll: float = 0.0, pitch: float = 0.0) -> Returns:
    """One turn of a sensor at the origin of `scene`.

    The rays are cast on one thread, so that workers do not fight over cores and the result does not depend on their number.
    """
    caster = _raycaster(scene)
    directions, beam = ray_directions(sensor, rng, roll, pitch)
    hits = _cast(caster, scene, directions, rng, sensor.max_range)
    directions, beam = directions[hits.ray], beam[hits.ray]

    reflectance = scene.reflectance[hits.triangle]
    answered = -np.expm1(-sensor.power * (_DARKEST + reflectance) * hits.cosine / np.maximum(hits.distance, _FOCUS) ** 2)
    kept = rng.random(len(answered)) < answered * (1 - sensor.dropout)
    distance = hits.distance + sensor.range_noise * rng.standard_normal(len(kept), dtype=np.float32)
    kept &= (distance >= sensor.min_range) & (distance <= sensor.max_range)
    points = np.empty((len(kept), 4), dtype=np.float32)
    points[:, :3] = distance[:, None] * directions
    points[:, 3] = _intensity(sensor, reflectance, hits.cosine, rng)
    if sensor.camera:
        kept &= in_camera_view(points)
    return Returns(points[kept], beam[kept], hits.triangle[kept])


def _raycaster(scene: Mesh) -> Any:
    import open3d as o3d

    caster = o3d.t.geometry.RaycastingScene(nthreads=1)
    caster.add_triangles(_tensor(scene.vertices), _tensor(scene.triangles.astype(np.uint32)))
    return caster


def _tensor(array: Any) -> Any:
    import open3d as o3d

    core: Any = o3d.core  # its type stubs do not know that dtype and device may be left out
    return core.Tensor(array)


@dataclass
class _Hits:
    ray: NDArray[np.int64]
    triangle: NDArray[np.int64]
    distance: NDArray[np.float32]
    cosine: NDArray[np.float32]  # of the angle between ray and normal, 0 grazing to 1 head-on


def _cast(caster: Any, scene: Mesh, directions: NDArray[np.float32], rng: np.random.Generator, max_range: float) -> _Hits:
    """Where each ray first stops; rays that pass a triangle of low opacity are sent on from there."""
    ray = np.arange(len(directions))
    start = np.zeros(len(directions), dtype=np.float32)
    stopped = []
    for _ in range(_PASSES):
        rays = np.concatenate([directions[ray] * start[:, None], directions[ray]], axis=1)
        found = caster.cast_rays(_tensor(rays), nthreads=1)
        triangle = found["primitive_ids"].numpy()
        distance = found["t_hit"].numpy() + start
        met = np.flatnonzero((triangle != _MISSED) & (distance < max_range + 1))
        ray, triangle, distance = ray[met], triangle[met].astype(np.int64), distance[met]
        normal = found["primitive_normals"].numpy()[met]
        cosine = np.abs(np.einsum("nc,nc->n", normal, directions[ray]))
        stops = rng.random(len(ray), dtype=np.float32) < scene.opacity[triangle]
        stopped.append((ray[stops], triangle[stops], distance[stops], cosine[stops]))
        ray, start = ray[~stops], distance[~stops] + np.float32(0.02)
    ray, triangle, distance, cosine = (np.concatenate(parts) for parts in zip(*stopped, strict=True))
    order = np.argsort(ray)
    return _Hits(ray[order], triangle[order], distance[order], cosine[order])


def _intensity(
    sensor: Sensor, reflectance: NDArray[np.float32], cosine: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Sensors correct for range and mostly for angle; what is left is a weak fall with the angle and speckle."""
    angle = (0.6 + 0.4 * cosine) * np.clip(cosine / 0.07, 0, 1)
    speckle = np.exp(0.18 * rng.standard_normal(len(cosine), dtype=np.float32))
    value = sensor.intensity_gain * (reflectance * angle * speckle) ** sensor.intensity_gamma
    steps = np.round(sensor.intensity_maximum / sensor.intensity_step * value.clip(0, 1))
    return (steps * sensor.intensity_step).clip(0, sensor.intensity_maximum).astype(np.float32)
