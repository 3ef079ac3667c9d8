"""One evaluator for every domain: metrics by name, samples from several processes, results as JSON, CSV and a table."""

from __future__ import annotations

from vsuite.core.evaluation.evaluator import EvaluationResult, Evaluator, Row
from vsuite.core.evaluation.metrics import Metric, create_metric, list_metrics, register_metric
from vsuite.core.evaluation.writers import print_table, write_csv, write_json

__all__ = [
    "EvaluationResult",
    "Evaluator",
    "Metric",
    "Row",
    "create_metric",
    "list_metrics",
    "print_table",
    "register_metric",
    "write_csv",
    "write_json",
]
