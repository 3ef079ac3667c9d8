"""Metrics. Each has a function that returns its definition as text."""
