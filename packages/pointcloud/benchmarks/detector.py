"""FlatFormer against its plain form, stage by stage and as a whole, on one frame at full size; both have the same weights.

python packages/pointcloud/benchmarks/detector.py --threads 1 --threads 2
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from vsuite.core import create_model, optimize_for_inference
from vsuite.core.bench.timing import Spread, time_in_turn
from vsuite.pointcloud.bench.plain import flatformer as plain
from vsuite.pointcloud.models.flatformer import inverse_orders, window_orders

STAGES = ("voxels", "mapping", "encoder", "map", "backbone", "head", "detector")


def frame(num_voxels: int, points_a_voxel: int = 6) -> Tensor:
    """Points P, 5 in exactly `num_voxels` pillars of the published grid, denser near the sensor."""
    generator = torch.Generator().manual_seed(0)
    metres = (torch.arange(468) + 0.5) * 0.32 - 74.88
    distance = torch.hypot(metres[:, None], metres[None, :]).flatten()
    cells = torch.multinomial(1 / (5 + distance), num_voxels, generator=generator).repeat(points_a_voxel)
    within = torch.rand(len(cells), 3, generator=generator) * 0.98 + 0.01
    x, y = (cells % 468 + within[:, 0]) * 0.32 - 74.88, (cells // 468 + within[:, 1]) * 0.32 - 74.88
    return torch.stack([x, y, within[:, 2] * 5.9 - 1.95, *torch.rand(2, len(cells), generator=generator)], dim=1)


def stirred(model: Any) -> Any:
    """Statistics and weights as after some training, so that maps are neither flat nor huge."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
    return model.eval()


def stages(model: Any, points: list[Tensor], mapping: Callable[[Tensor], Any]) -> dict[str, Callable[[], Any]]:
    """What to time: each stage on what the stages before it gave."""
    features, coordinates = model.voxel_encoder(points)
    bev = model.middle_encoder(features, coordinates, 1)
    neck = model.neck(model.backbone(bev))
    head = model.bbox_head
    return {
        "voxels": lambda: model.voxel_encoder(points),
        "mapping": lambda: mapping(coordinates),
        "encoder": lambda: model.middle_encoder.forward_voxels(features, coordinates, 1),
        "map": lambda: model.middle_encoder(features, coordinates, 1),
        "backbone": lambda: model.neck(model.backbone(bev)),
        "head": (lambda: head.decode(head(neck))) if mapping is plain_mapping else (lambda: head.predict(neck)),
        "detector": lambda: model.predict(points),
    }


def fast_mapping(coordinates: Tensor) -> Tensor:
    return inverse_orders(window_orders(coordinates, (13, 13), (468, 468)))


def plain_mapping(coordinates: Tensor) -> dict[str, Tensor]:
    return plain.mapping(coordinates, 1, (13, 13), (468, 468), 144)


@torch.inference_mode()
def main(
    threads: Annotated[list[int], typer.Option(help="Threads of torch; may be given more than once.")] = [1],  # noqa: B006
    only: Annotated[list[str], typer.Option(help="Stages; all where none is given.")] = [],  # noqa: B006
    voxels: Annotated[int, typer.Option(help="Pillars of the frame.")] = 24000,
    seconds: Annotated[float, typer.Option(help="Budget of one form of one stage.")] = 5.0,
) -> None:
    points = [frame(voxels)]
    slow, model = stirred(plain.build()), create_model("flatformer")
    model.load_state_dict(slow.state_dict())
    fast = optimize_for_inference(model)
    difference = max(float((a - b).abs().max()) for a, b in zip(slow(points).values(), fast(points).values(), strict=True))
    print(f"{voxels} voxels of {len(points[0])} points; largest difference of the maps {difference:.1e}")
    pairs = stages(slow, points, plain_mapping), stages(fast, points, fast_mapping)
    for count in threads:
        torch.set_num_threads(count)
        print(f"\n{count} thread{'s' * (count > 1)}: {'plain':>14} {'ours':>9} {'times':>7}")
        for name in only or STAGES:
            calls = [functools.partial(torch.inference_mode()(pair[name])) for pair in pairs]
            times = time_in_turn(calls, seconds=seconds)
            ratio = Spread.of([a / b for a, b in zip(*times, strict=True)])
            first, second = (1e3 * Spread.of(t).median for t in times)
            print(f"{name:>10}: {first:9.1f} ms {second:6.1f} ms {ratio.median:6.2f}  ({ratio.p10:.2f} to {ratio.p90:.2f})")


if __name__ == "__main__":
    typer.run(main)
