"""How long point operations and the shape networks take, ours beside the plain form in torch.

    python packages/pointcloud/benchmarks/shapes.py [--threads 1] [--seconds 5] [--only fps]

Both run the same weights on the same clouds, in turns; the table has medians of wall time, the ratio round by round
with its 10th and 90th percentile, and the largest difference of the outputs (0 for indices: they are equal).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vsuite.core import create_model, optimize_for_inference
from vsuite.core.bench.timing import Spread, time_in_turn
from vsuite.pointcloud.bench.plain.gpsformer import build, plain_ball_query, plain_farthest_points
from vsuite.pointcloud.models.gpsformer import NUM_SAMPLES, RADII, VARIANTS
from vsuite.pointcloud.point_ops import ball_queries, farthest_points, gather_points, nearest_points, plain_nearest


@dataclass(frozen=True)
class Pair:
    """The same computation in its plain form and in ours."""

    name: str
    plain: Callable[[], Tensor]
    ours: Callable[[], Tensor]


def spheres(batch: int, points: int) -> Tensor:
    """Clouds on the unit sphere: batch, points, 3."""
    return F.normalize(torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(0)), dim=-1)


def pairs() -> Iterator[Pair]:
    for number, samples in ((1024, 512), (2048, 1024)):
        for batch in (1, 16):
            cloud = spheres(batch, number)
            yield Pair(
                f"fps {number} -> {samples}, batch {batch}",
                lambda x=cloud, m=samples: plain_farthest_points(x, m),
                lambda x=cloud, m=samples: farthest_points(x, m),
            )
    for batch in (1, 16):
        cloud = spheres(batch, 1024)
        centres = gather_points(cloud, farthest_points(cloud, 512))
        yield Pair(
            f"three ball queries, batch {batch}",
            lambda x=cloud, c=centres: torch.cat([plain_ball_query(x, c, r, n) for r, n in zip(RADII, NUM_SAMPLES, strict=True)], dim=2),
            lambda x=cloud, c=centres: torch.cat(ball_queries(x, c, RADII, NUM_SAMPLES), dim=2),
        )
        yield Pair(
            f"three nearest, batch {batch}",
            lambda x=cloud, c=centres: plain_nearest(c, x, 3),
            lambda x=cloud, c=centres: nearest_points(c, x, 3),
        )
    for name in VARIANTS:
        fast = create_model(name).eval()
        slow = build(**VARIANTS[name].options).eval()
        slow.load_state_dict(fast.state_dict())
        folded = optimize_for_inference(fast)
        for batch in (1, 16):
            cloud = spheres(batch, 1024)
            yield Pair(f"{name}, batch {batch}", lambda x=cloud, m=slow: m(x), lambda x=cloud, m=fast: m(x))
            yield Pair(f"{name}, optimized, batch {batch}", lambda x=cloud, m=slow: m(x), lambda x=cloud, m=folded: m(x))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="budget of each form; five rounds are made at least")
    parser.add_argument("--only", default="", help="only lines whose description holds this text")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'':<36}{'plain ms':>10}{'ours ms':>10}{'plain/ours':>12}{'p10':>7}{'p90':>7}{'gap':>10}")
    for pair in pairs():
        if arguments.only not in pair.name:
            continue
        gap = float((pair.plain() - pair.ours()).abs().max())
        slow, fast = time_in_turn([pair.plain, pair.ours], seconds=arguments.seconds)
        ratio = Spread.of([a / b for a, b in zip(slow, fast, strict=True)])
        medians = [1e3 * Spread.of(times).median for times in (slow, fast)]
        print(
            f"{pair.name:<36}{medians[0]:>10.1f}{medians[1]:>10.2f}{ratio.median:>12.1f}{ratio.p10:>7.1f}{ratio.p90:>7.1f}{gap:>10.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
