"""Volumes, label maps and data sets: files, geometry, planning."""
