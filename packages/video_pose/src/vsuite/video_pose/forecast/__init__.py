"""Predicting the next frames of a video: data, training, prediction, evaluation."""
