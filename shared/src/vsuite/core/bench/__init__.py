"""What a model costs: parameters, multiply-accumulates, latency, throughput and peak memory."""

from __future__ import annotations

from vsuite.core.bench.comparison import Comparison, compare
from vsuite.core.bench.count import count_macs, count_parameters
from vsuite.core.bench.measurement import Measurement, measure
from vsuite.core.bench.memory import peak_memory
from vsuite.core.bench.report import print_results, write_results
from vsuite.core.bench.subject import Conditions, Subject, forms

__all__ = [
    "Comparison",
    "Conditions",
    "Measurement",
    "Subject",
    "compare",
    "count_macs",
    "count_parameters",
    "forms",
    "measure",
    "peak_memory",
    "print_results",
    "write_results",
]
