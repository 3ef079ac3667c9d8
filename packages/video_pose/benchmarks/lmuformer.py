"""LMUFormer's speed in pairs: the memory, the neurons, whole models, and a stream's time for each frame.

    python packages/video_pose/benchmarks/lmuformer.py
    python packages/video_pose/benchmarks/lmuformer.py --processor     # on a machine that others use too

Prints milliseconds of the plain form and of ours and their ratio, medians of alternating runs; outputs are compared before.
Weights are random, with norms that let neurons fire.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from torch import nn
from torch.nn import functional as F

from vsuite.core.bench import forms
from vsuite.core.optimize import optimize_for_inference
from vsuite.video_pose.bench.plain.lmuformer import plain_memory, plain_neurons
from vsuite.video_pose.models.lmuformer import LIF, LMUCell, LMUFormer


def pair(name: str, plain: Callable[[], torch.Tensor], fast: Callable[[], torch.Tensor], repeats: int, clock: Callable[[], float]) -> None:
    """Compares the outputs of two forms, then prints what each takes."""
    difference = (plain().float() - fast().float()).abs().max()
    taken: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        for action, times in zip((plain, fast), taken, strict=True):
            start = clock()
            action()
            times.append(1000 * (clock() - start))
    before, after = map(statistics.median, taken)
    print(f"{name}: plain {before:.2f} ms, ours {after:.2f} ms, {before / after:.2f} x, largest difference {difference:.1e}")


def published_cell(cell: LMUCell, x: torch.Tensor) -> torch.Tensor:
    """The cell as the official code has it: the whole memory by Fourier transform, then the hidden layer."""
    length = len(x)
    u = F.relu(cell.W_u(x)).squeeze(-1)
    spectrum = torch.fft.rfft(u.t(), 2 * length)[:, None] * torch.fft.rfft(cell.impulse(length), 2 * length)
    m = torch.fft.irfft(spectrum, 2 * length)[..., :length].permute(2, 0, 1)
    return F.relu(cell.W_h(torch.cat([m, x], -1)))


def recurrent_cell(cell: LMUCell, x: torch.Tensor) -> torch.Tensor:
    m = plain_memory(cell, F.relu(cell.W_u(x)).squeeze(-1))
    return F.relu(cell.W_h(torch.cat([m, x], -1)))


def awake(model: nn.Module) -> nn.Module:
    """Norms that let neurons fire."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.weight, 4)
            nn.init.constant_(module.bias, 0.5)
    return model.eval()


def main(
    threads: Annotated[int, typer.Option(help="Threads of the CPU.")] = 1,
    repeats: Annotated[int, typer.Option(help="Runs of each form, of which the median counts.")] = 5,
    batch: Annotated[int, typer.Option(help="Clips in a batch.")] = 32,
    processor: Annotated[bool, typer.Option(help="Count processor time and not time on the clock.")] = False,
) -> None:
    """Measures all pairs."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    clock = time.process_time if processor else time.perf_counter
    with torch.inference_mode():
        cell, x = LMUCell(256, 256, 256, 128.0), torch.randn(128, batch, 256)
        pair("memory cell, against the recurrence", lambda: recurrent_cell(cell, x), lambda: cell(x), repeats, clock)
        pair("memory cell, against the published transform", lambda: published_cell(cell, x), lambda: cell(x), repeats, clock)
        long_cell, long = LMUCell(3, 346, 468, 784.0), torch.randn(784, max(1, batch // 8), 3)
        pair("memory cell of 784 pixels", lambda: recurrent_cell(long_cell, long), lambda: long_cell(long), repeats, clock)
        neurons = LIF()
        for size in (1, batch):
            x = 1.5 * torch.randn(128, size, 512)
            pair(f"neurons 128 x {size} x 512", partial(plain_neurons, x, 1.0, 2.0), partial(neurons, x), repeats, clock)
    given = (1.5 * torch.randn(128, batch, 512)).requires_grad_()

    def gradient(fire: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.autograd.grad(fire(given).square().sum(), given)[0]

    pair("neurons, with their gradient", lambda: gradient(unrolled), lambda: gradient(neurons), repeats, clock)
    with torch.inference_mode():
        for name in ("lmuformer_speech", "lmuformer_speech_spiking"):
            plain, fast = (awake(subject.build()) for subject in forms(name, plain=True))
            fast.load_state_dict(plain.state_dict())
            fast = optimize_for_inference(fast)
            for size in (1, batch):
                x = torch.randn(size, 128, 128)
                pair(f"{name}, batch of {size}", partial(plain, x), partial(fast, x), repeats, clock)
    for form in ("lmu", "spiking"):
        stream = awake(LMUFormer(form=form)).stream()  # type: ignore[operator]
        frames = torch.randn(1, 64, 128)
        stream.push_chunk(frames)
        start = clock()
        stream.push_chunk(frames)
        print(f"stream, {form}: {1000 * (clock() - start) / 64:.2f} ms a frame (a frame of speech lasts 10 ms)")


class Step(torch.autograd.Function):
    """The step of neurons as spikingjelly's plain form has it."""

    @staticmethod
    def forward(ctx, excess):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(excess)
        return (excess >= 0).to(excess)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        rising = torch.sigmoid(4 * ctx.saved_tensors[0])
        return gradient * 4 * rising * (1 - rising)


def unrolled(x: torch.Tensor) -> torch.Tensor:
    """Neurons as a loop that autograd follows node by node."""
    v, found = torch.zeros_like(x[0]), []
    for now in x.unbind(0):
        v = v + (now - v) / 2
        fired = Step.apply(v - 1)
        v = (1 - fired.detach()) * v
        found.append(fired)
    return torch.stack(found)


if __name__ == "__main__":
    typer.run(main)
