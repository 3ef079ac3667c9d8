"""A world to learn from: simulated lidar sweeps of random streets, and point clouds of parametric solids."""

from vsuite.pointcloud.simulate.frames import Sweep, simulate_frame, simulate_sweep, write_frames
from vsuite.pointcloud.simulate.lidar import PROFILES, Profile, Randomisation, Sensor
from vsuite.pointcloud.simulate.solids import make_solids, write_solids

__all__ = [
    "PROFILES",
    "Profile",
    "Randomisation",
    "Sensor",
    "Sweep",
    "make_solids",
    "simulate_frame",
    "simulate_sweep",
    "write_frames",
    "write_solids",
]
