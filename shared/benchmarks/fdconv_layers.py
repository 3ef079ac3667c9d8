"""How long each kind of FDConv layer of ResNet-50 takes, ours beside the plain form (the structure of the official code).

    python shared/benchmarks/fdconv_layers.py [--size 224] [--threads 1] [--repeats 15] [--layers 3x3]

Both run the same weights on the same maps, in turns; times are CPU time, the lowest third of the repeats averaged.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vsuite.core.bench.plain.fdconv import plain
from vsuite.core.models.fdconv import FrequencyDynamicConv2d

# in, out, kernel, stride, how much coarser than the image the layer's input is, how many of them ResNet-50 has
LAYERS = [
    (64, 64, 1, 1, 4, 1),
    (64, 64, 3, 1, 4, 3),
    (64, 256, 1, 1, 4, 3),
    (256, 64, 1, 1, 4, 2),
    (256, 128, 1, 1, 4, 1),
    (128, 128, 3, 2, 4, 1),
    (128, 512, 1, 1, 8, 4),
    (512, 128, 1, 1, 8, 3),
    (128, 128, 3, 1, 8, 3),
    (512, 256, 1, 1, 8, 1),
    (256, 256, 3, 2, 8, 1),
    (256, 1024, 1, 1, 16, 6),
    (1024, 256, 1, 1, 16, 5),
    (256, 256, 3, 1, 16, 5),
    (1024, 512, 1, 1, 16, 1),
    (512, 512, 3, 2, 16, 1),
    (512, 2048, 1, 1, 32, 3),
    (2048, 512, 1, 1, 32, 2),
    (512, 512, 3, 1, 32, 2),
]


def compare(first: Callable[[], Tensor], second: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Milliseconds of each, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(repeats + 2):
        for function, kept in zip((first, second), times, strict=True):
            start = time.process_time()
            function()
            if run > 1:
                kept.append(1e3 * (time.process_time() - start))
    lowest = max(1, repeats // 3)
    return statistics.mean(sorted(times[0])[:lowest]), statistics.mean(sorted(times[1])[:lowest])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layers", default="", help="only layers whose description holds this text")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'layer':<22}{'input':>9}{'conv ms':>10}{'plain ms':>10}{'ours ms':>10}{'plain/ours':>12}{'gap':>10}")
    sums = [0.0, 0.0]
    for in_channels, out_channels, kernel, stride, coarser, count in LAYERS:
        name = f"{in_channels}->{out_channels} {kernel}x{kernel}" + (f" /{stride}" if stride > 1 else "")
        if arguments.layers not in name:
            continue
        side = arguments.size // coarser
        x = torch.rand(1, in_channels, side, side)
        ours = FrequencyDynamicConv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False).eval().requires_grad_(False)
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        theirs = plain(copy.deepcopy(ours))
        last = x.contiguous(memory_format=torch.channels_last)
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False).requires_grad_(False)
        with torch.inference_mode():
            plain_ms, ours_ms = compare(lambda: theirs(x), lambda: ours(last), arguments.repeats)  # noqa: B023
            conv_ms, _ = compare(lambda: conv(x), lambda: x, arguments.repeats)  # noqa: B023
            expected = theirs(x)
            gap = (ours(last) - expected).abs().max() / expected.std()
        sums = [sums[0] + count * plain_ms, sums[1] + count * ours_ms]
        ratio = plain_ms / ours_ms
        print(f"{name:<22}{side:>5}^2{conv_ms:>12.2f}{plain_ms:>10.2f}{ours_ms:>10.2f}{ratio:>12.2f}{gap:>10.0e}", flush=True)
    print(f"{'all, as often as in ResNet-50':<41}{sums[0]:>10.1f}{sums[1]:>10.1f}{sums[0] / sums[1]:>12.2f}")


if __name__ == "__main__":
    main()
