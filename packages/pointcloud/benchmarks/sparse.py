"""Speed of sparse convolution on voxels as a lidar sees them, a thin wavy sheet.

    python packages/pointcloud/benchmarks/sparse.py --threads 1

Prints the best of several runs in milliseconds: the neighbour table, the forward pass with the table at hand, and forward and
backward, for a submanifold 3 x 3 x 3 convolution, and table and forward for one of stride 2; beside them the plain form (look-ups of
all 27 neighbours, `index_add` of each), whose results are compared first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from vsuite.pointcloud.nn import neighbours
from vsuite.pointcloud.nn.sparse_conv import SparseConv3d, SubMConv3d
from vsuite.pointcloud.nn.sparse_tensor import SparseTensor, linear_keys


def sheet(rows: int, channels: int) -> SparseTensor:
    """Cells of a wavy surface."""
    generator = torch.Generator().manual_seed(0)
    side = int((8 * rows) ** 0.5)
    place = torch.randperm(side * side, generator=generator)[:rows]
    y, x = place // side, place % side
    z = (5 + 2 * torch.sin(x / 30) + 2 * torch.cos(y / 20)).long()
    coordinates = torch.stack([torch.zeros_like(z), z, y, x], dim=1)
    return SparseTensor(torch.randn(rows, channels, generator=generator), coordinates, (16, side, side), 1)


def plain_table(x: SparseTensor) -> list[tuple[Tensor, Tensor]]:
    """Of each of the 27 elements the output and input rows, each looked up."""
    sizes = [size + 2 for size in x.spatial_shape]
    keys = linear_keys(x.coordinates + torch.tensor([0, 1, 1, 1]), sizes)
    pairs = []
    for dz, dy, dx in itertools.product((-1, 0, 1), repeat=3):
        sought = keys + (dz * sizes[1] + dy) * sizes[2] + dx
        place = torch.searchsorted(keys, sought).clamp_(max=len(keys) - 1)
        hit = (keys[place] == sought).nonzero().squeeze(1)
        pairs.append((hit, place[hit]))
    return pairs


def plain_forward(features: Tensor, weight: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Gather, multiply, `index_add` for each element."""
    result = features.new_zeros(len(features), weight.shape[0])
    for (outputs, inputs), matrix in zip(pairs, weight.flatten(1, -2).unbind(1), strict=True):
        result = result.index_add(0, outputs, features[inputs] @ matrix.T)
    return result


def best(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the fastest of several runs."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:]) * 1e3


def main(
    rows: Annotated[list[int], typer.Option(help="Voxels.")] = [20_000, 100_000],  # noqa: B006 (typer copies it)
    channels: Annotated[list[int], typer.Option(help="In and out.")] = [16, 64],  # noqa: B006
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    repeats: Annotated[int, typer.Option(help="The best counts.")] = 7,
) -> None:
    """Prints the table."""
    torch.set_num_threads(threads)
    print("voxels channels | table forward fwd+bwd | plain: table forward fwd+bwd | stride 2: table forward cells")
    for count, width in itertools.product(rows, channels):
        print(f"{count:6d} {width:3d} | {measure(sheet(count, width), repeats)}")


def measure(x: SparseTensor, repeats: int) -> str:
    """One row of the table."""
    width = x.features.shape[1]
    layer, down = SubMConv3d(width, width, bias=False), SparseConv3d(width, width, 3, 2, 1, bias=False)
    pairs = plain_table(x)
    torch.testing.assert_close(layer(x).features, plain_forward(x.features, layer.weight, pairs), rtol=1e-4, atol=1e-5)
    leaf = x.replace_feature(x.features.clone().requires_grad_())
    with torch.no_grad():
        ours = [best(lambda: neighbours.submanifold(x.sites, (3, 3, 3), (1, 1, 1)), repeats), best(lambda: layer(x), repeats)]
        plain = [best(lambda: plain_table(x), repeats), best(lambda: plain_forward(x.features, layer.weight, pairs), repeats)]
        geometry = (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)
        strided = [best(lambda: neighbours.strided(x.sites, *geometry), repeats), best(lambda: down(x), repeats)]
    ours.append(best(lambda: layer(leaf).features.sum().backward(), repeats))
    plain.append(best(lambda: plain_forward(leaf.features, layer.weight, pairs).sum().backward(), repeats))
    columns = [" ".join(f"{value:7.1f}" for value in part) for part in (ours, plain, strided)]
    return f"{' | '.join(columns)} {len(down.table(x).target)}"


if __name__ == "__main__":
    typer.run(main)
