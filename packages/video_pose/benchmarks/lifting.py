"""ConvFormer: the plain form (one convolution a filter) against ours, and whole videos against window by window.

    python packages/video_pose/benchmarks/lifting.py --threads 2
    python packages/video_pose/benchmarks/lifting.py --threads 1 --processor     # on a machine that others use too

Prints seconds of each (the fastest of several runs, the forms in turn) and ratios; outputs are compared before. Weights are random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import typer

from vsuite.core import optimize_for_inference
from vsuite.video_pose.bench.plain import convformer as plain
from vsuite.video_pose.models.convformer import ConvFormer


def best(actions: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of the fastest run of each, in turn, after one for warming up."""
    times: list[list[float]] = [[] for _ in actions]
    for action in actions:
        action()
    for _ in range(repeats):
        for spent, action in zip(times, actions, strict=True):
            start = clock()
            action()
            spent.append(clock() - start)
    return [min(spent) for spent in times]


def measure(length: int, batch_size: int, frames: int, repeats: int, clock: Callable[[], float]) -> None:
    """Prints the figures of windows of one length."""
    torch.manual_seed(0)
    model, slow = ConvFormer(num_frames=length).eval(), plain.build(num_frames=length).eval()
    slow.load_state_dict(model.state_dict())
    folded = optimize_for_inference(model)
    assert isinstance(slow, ConvFormer)
    assert isinstance(folded, ConvFormer)
    x, video = torch.randn(batch_size, length, 17, 2), torch.randn(frames, 17, 2)
    print(f"T = {length}: largest difference {(slow(x) - folded(x)).abs().max():.1e} of {slow(x).abs().max():.2f}")
    first, second, third = best([lambda: slow(x), lambda: model(x), lambda: folded(x)], repeats, clock)
    print(f"  {batch_size} windows: plain {first:.4f} s, as built {second:.4f} s ({first / second:.2f} x), ", end="")
    print(f"optimized {third:.4f} s ({first / third:.2f} x)")
    difference = (plain.lift(slow, video[:5]) - folded.lift(video[:5])).abs().max()
    first, second = best([lambda: plain.lift(slow, video), lambda: folded.lift(video)], 1, clock)
    print(f"  {frames} frames: plain, window by window {first:.2f} s, lift {second:.2f} s ({first / second:.2f} x), ", end="")
    print(f"difference {difference:.1e}")


def main(
    threads: Annotated[int, typer.Option(help="Threads of the CPU.")] = 2,
    repeats: Annotated[int, typer.Option(help="Runs of each, of which the fastest counts.")] = 7,
    batch_size: Annotated[int, typer.Option(help="Windows in one pass.")] = 2,
    frames: Annotated[int, typer.Option(help="Length of the whole video.")] = 60,
    processor: Annotated[bool, typer.Option(help="Count processor time and not time on the clock.")] = False,
) -> None:
    """Measures windows of 81 and 243 frames, and a whole video."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        for length in (81, 243):
            measure(length, batch_size, frames, repeats, time.process_time if processor else time.perf_counter)


if __name__ == "__main__":
    typer.run(main)
