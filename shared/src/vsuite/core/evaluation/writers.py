"""Results of an evaluation as JSON, as CSV and on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vsuite.core import files
from vsuite.core.evaluation.evaluator import EvaluationResult
from vsuite.core.terminal import console, new_table


def write_json(result: EvaluationResult, path: str | Path, facts: Mapping[str, Any] | None = None) -> None:
    """Writes summary, counts and samples, atomically, as JSON that every reader takes: NaN is null, infinity "inf".

    Args:
        facts: what else belongs beside the figures (conventions, weights, data), put first.
    """
    content = {
        **(facts or {}),
        "num_samples": len(result.rows),
        "summary": {column: json_number(value) for column, value in result.summary.items()},
        "counts": result.counts,
        "samples": [
            {"index": row.index, "name": row.name, **{column: json_number(value) for column, value in row.values.items()}}
            for row in result.rows
        ],
    }
    files.write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def json_number(value: float) -> float | str | None:
    """A number as JSON can hold it: NaN as null, infinities as "inf" and "-inf"."""
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def write_csv(result: EvaluationResult, path: str | Path) -> None:
    """Writes one line a sample, atomically: index, name and one column a number; empty where it is not defined."""
    columns = list(dict.fromkeys(column for row in result.rows for column in row.values))
    rows: list[list[Any]] = [["index", "name", *columns]]
    for row in result.rows:
        values = [row.values.get(column, math.nan) for column in columns]
        rows.append([row.index, row.name, *("" if math.isnan(value) else repr(value) for value in values)])
    files.write_csv(path, rows)


def print_table(result: EvaluationResult, title: str | None = None) -> None:
    """Prints each result with the number of samples that entered it."""
    table = new_table("metric", "value", "samples", right=("value", "samples"), title=title)
    for column, value in result.summary.items():
        table.add_row(column, "not defined" if math.isnan(value) else f"{value:.4f}", f"{result.counts[column]} of {len(result.rows)}")
    console().print(table)
