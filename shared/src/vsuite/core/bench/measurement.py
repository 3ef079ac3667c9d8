"""The measurement of one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.bench.count import count_macs, count_parameters
from vsuite.core.bench.memory import peak_memory
from vsuite.core.bench.subject import Conditions, Subject
from vsuite.core.bench.timing import Spread, time_in_turn
from vsuite.core.devices import Precision


@dataclass(frozen=True)
class Measurement:
    """What one model costs.

    Attributes:
        parameters: learnable numbers.
        macs: multiply-accumulates of one forward pass of the whole batch, by operator.
        latency: seconds of one forward pass.
        throughput: samples a second, at the median latency.
        memory: bytes at the peak; None if it was not measured.
    """

    parameters: int
    macs: dict[str, int]
    latency: Spread
    throughput: float
    memory: int | None = None

    @property
    def total_macs(self) -> int:
        return sum(self.macs.values())

    @property
    def flops(self) -> int:
        """Two for each multiply-accumulate."""
        return 2 * self.total_macs


def measure(
    model: nn.Module,
    inputs: Tensor,
    *,
    precision: Precision = "fp32",
    threads: int | None = None,
    seconds: float = 10.0,
    subject: Subject | None = None,
) -> Measurement:
    """Measures a model that exists, on the device of its input.

    Args:
        model: put into eval mode.
        inputs: B, C, and the sides.
        precision, threads, seconds: see `Conditions`.
        subject: how a fresh process builds the same model; without it the memory is not measured.
    """
    conditions = Conditions(tuple(inputs.shape[1:]), inputs.shape[0], str(inputs.device), precision, threads, seconds)
    model.eval()
    with conditions.applied():
        macs = count_macs(model, inputs)
        times = time_in_turn([lambda: model(inputs)], seconds=seconds, synchronize=synchronizer(conditions.device))[0]
    latency = Spread.of(times)
    memory = None if subject is None else peak_memory(subject, conditions)
    return Measurement(count_parameters(model), macs, latency, conditions.batch_size / latency.median, memory)


def synchronizer(device: str) -> Callable[[], Any] | None:
    """What waits for the device; None for the CPU, where nothing has to."""
    return None if device == "cpu" else lambda: torch.cuda.synchronize(device)


def tensors(output: Any) -> list[Tensor]:
    """All tensors of a model's output, however it is nested."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [tensor for part in output for tensor in tensors(part)]
    return []
