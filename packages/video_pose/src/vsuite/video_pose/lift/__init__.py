"""Lifting 2D poses to 3D: data, training, prediction, evaluation."""
