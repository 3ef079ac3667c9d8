"""Spotting spoken words: data, training, prediction, evaluation."""
