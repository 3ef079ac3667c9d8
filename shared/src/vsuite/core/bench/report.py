"""Results of a benchmark as a table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from vsuite.core.bench.comparison import Result
from vsuite.core.bench.subject import Conditions
from vsuite.core.files import write_text
from vsuite.core.terminal import console, new_table


def environment(conditions: Conditions) -> dict[str, Any]:
    """On what the figures were obtained."""
    facts = {"torch": torch.__version__, "processor": processor(), "threads": conditions.threads or torch.get_num_threads()}
    if conditions.device != "cpu":
        facts |= {"gpu": torch.cuda.get_device_name(conditions.device), "cuda": torch.version.cuda}
    return facts


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_results(results: Sequence[tuple[Conditions, Result]]) -> None:
    """Prints the costs, a table for each set of conditions, and where forms were compared, the comparison."""
    out = console()
    for position, conditions in enumerate(dict.fromkeys(conditions for conditions, _ in results)):
        chosen = [result for other, result in results if other == conditions]
        if position:
            out.print()
        out.print(conditions_text(conditions))
        out.print(_costs(chosen))
        for baseline in dict.fromkeys(result.comparison.baseline for result in chosen if result.comparison):
            out.print(f"\ncompared with {baseline}")
            out.print(_comparisons(chosen, baseline))


def _costs(results: Sequence[Result]) -> Table:
    numbers = ("params", "GMAC", "GFLOP", "ms", "p10-p90", "per s", "MiB")
    table = new_table("model", *numbers, right=numbers)
    for result in results:
        cost = result.measurement
        table.add_row(
            result.subject.label,
            f"{cost.parameters / 1e6:.2f}M",
            three_digits(cost.total_macs / 1e9),
            three_digits(cost.flops / 1e9),
            three_digits(1e3 * cost.latency.median),
            f"{three_digits(1e3 * cost.latency.p10)}-{three_digits(1e3 * cost.latency.p90)}",
            three_digits(cost.throughput),
            "" if cost.memory is None else f"{cost.memory / 2**20:.0f}",
        )
    return table


def _comparisons(results: Sequence[Result], baseline: str) -> Table:
    numbers = ("times as fast", "p10-p90", "memory ratio", "max difference")
    table = new_table("model", *numbers, right=numbers)
    for result in results:
        found = result.comparison
        if found is None or found.baseline != baseline:
            continue
        table.add_row(
            result.subject.label,
            f"{found.speed_up.median:.2f}",
            f"{found.speed_up.p10:.2f}-{found.speed_up.p90:.2f}",
            f"{found.memory_ratio:.2f}",
            f"{found.max_difference:.1e}",
        )
    return table


def conditions_text(conditions: Conditions) -> str:
    """On what and how, in one line."""
    facts = environment(conditions)
    where = f"{facts['gpu']}" if "gpu" in facts else f"{facts['processor']}, {facts['threads']} threads"
    return f"input {shape_text(conditions)}, {conditions.precision}, {where}, torch {facts['torch']}"


def shape_text(conditions: Conditions) -> str:
    """Such as "1x4x128x128x128", batch first."""
    return "x".join(map(str, (conditions.batch_size, *conditions.size)))


def three_digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def write_results(path: str | Path, results: Sequence[tuple[Conditions, Result]]) -> None:
    """Writes everything that was measured as JSON, atomically. Units: seconds, bytes, single operations."""
    content = [
        {
            "model": result.subject.name,
            "form": result.subject.form,
            "options": dict(result.subject.options),
            "conditions": dataclasses.asdict(conditions),
            "environment": environment(conditions),
            **dataclasses.asdict(result.measurement),
            "total_macs": result.measurement.total_macs,
            "flops": result.measurement.flops,
            "comparison": None if result.comparison is None else dataclasses.asdict(result.comparison),
        }
        for conditions, result in results
    ]
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")
