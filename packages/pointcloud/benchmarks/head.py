"""The head at FlatFormer's size: the plain form (maps, then boxes) against `CenterHead.predict`; and suppression of 4096 boxes.

    python packages/pointcloud/benchmarks/head.py --threads 2 --repeats 3
    python packages/pointcloud/benchmarks/head.py --threads 1 --processor     # on a machine that others use too

Prints seconds of each and their ratio; the outputs are compared before. Weights are random, with the heat map's and the IoU's
biases set so that all K candidates pass the score threshold: the most work that the fast form can have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer

from vsuite.pointcloud.boxes import nms
from vsuite.pointcloud.models.center_decode import WAYMO
from vsuite.pointcloud.models.center_head import CenterHead


def best(action: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest run, after one for warming up."""
    action()
    times = []
    for _ in range(repeats):
        start = clock()
        action()
        times.append(clock() - start)
    return min(times)


def candidates(count: int, objects: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of the size of cars, scattered around some objects as a heat map's cells are, and scores."""
    centre = (torch.rand(objects, 2) * 150 - 75)[torch.randint(objects, (count,))] + torch.randn(count, 2) * 0.6
    size = torch.tensor([4.5, 1.9, 1.6]) * (1 + 0.1 * torch.randn(count, 3)).clamp(min=0.1)
    return torch.cat([centre, torch.randn(count, 1), size, torch.rand(count, 1) * 6.3], 1), torch.rand(count)


def main(
    threads: Annotated[int, typer.Option(help="Threads of the CPU.")] = 2,
    repeats: Annotated[int, typer.Option(help="Runs of each, of which the fastest counts.")] = 3,
    size: Annotated[int, typer.Option(help="Rows and columns of the map.")] = 468,
    processor: Annotated[bool, typer.Option(help="Count processor time and not time on the clock.")] = False,
    device: str = "cpu",
) -> None:
    """Measures the head and the suppression."""
    torch.set_num_threads(threads)
    clock = time.process_time if processor else time.perf_counter
    torch.manual_seed(0)
    head = CenterHead(256, decode=WAYMO).eval().to(device)
    for name, bias in (("heatmap", 0.0), ("iou", 1.0)):
        head.branches[name][1].bias.data.fill_(bias)  # type: ignore[index]
    x = torch.randn(1, 256, size, size, device=device)
    with torch.inference_mode():
        plain, fast = head.decode(head(x))[0], head.predict(x)[0]
        assert len(plain) == len(fast) > 0
        print(f"{len(fast)} boxes, largest difference of a score {(plain.scores - fast.scores).abs().max():.1e}")
        slow = best(lambda: head.decode(head(x))[0].boxes.cpu(), repeats, clock)
        for layout in (torch.contiguous_format, torch.channels_last):
            features = x.contiguous(memory_format=layout)
            quick = best(lambda given=features: head.predict(given)[0].boxes.cpu(), repeats, clock)  # type: ignore[misc]
            print(f"{size} x {size} x 256, K = 4096, {layout}: plain {slow:.3f} s, predict {quick:.3f} s, {slow / quick:.2f} x")
    for objects in (60, 200):
        boxes, scores = candidates(4096, objects)
        for threshold in (0.8, 0.55, 0.2):
            spent = best(lambda b=boxes, s=scores, t=threshold: nms(b, s, t), repeats, clock)  # type: ignore[misc]
            kept = len(nms(boxes, scores, threshold))
            print(f"suppression of 4096 boxes of {objects} objects at IoU {threshold}: {1000 * spent:.1f} ms, {kept} kept")


if __name__ == "__main__":
    typer.run(main)
