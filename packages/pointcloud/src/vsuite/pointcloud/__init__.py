"""Point clouds: lidar detection, shapes, formats and a viewer."""

__version__ = "0.1.0"
