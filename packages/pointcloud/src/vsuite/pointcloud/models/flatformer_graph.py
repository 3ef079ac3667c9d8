"""FlatFormer's encoder as one graph of standard operators: coordinates in, map out, for export to ONNX.

The sort, the groups and the rule for the last group are computed inside the graph by operators that ONNX has (TopK, Gather,
ScatterElements, Where), so the file needs no custom operator, for any number of voxels.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.nn import perceptron
from vsuite.core.onnx import write_onnx
from vsuite.pointcloud.models.flatformer import FlatFormer, FlatFormerLayer, inverse_orders, window_orders

TOLERANCE = 1e-3
"""Largest difference allowed between the file and the encoder; its outputs are layer-normalised, of the order of 1."""


class EncoderGraph(nn.Module):
    """The encoder for one sample, without steps that depend on the number of voxels.

    Groups are gathered as whole ones, the last filled up with the voxels that precede it; a sample smaller than a group
    is filled up with copies of its first voxel, and a mask hides them.
    """

    def __init__(self, encoder: FlatFormer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, coordinates: Tensor) -> Tensor:
        """features: N, C; coordinates: N, 4 (b z y x, b = 0; int64), one voxel or more -> map 1, C, H, W."""
        encoder = self.encoder
        size = encoder.group_size
        orders = window_orders(coordinates, encoder.window, encoder.grid)
        places = inverse_orders(orders)
        position = encoder.position_embedding(coordinates)
        count = features.shape[0]
        padded = (count + size - 1) // size * size
        place = torch.arange(padded, device=features.device)
        source = torch.where(place < count, place, place - size)
        mask = torch.where(source < 0, -torch.inf, 0.0).unflatten(0, (-1, 1, 1, size))  # for samples smaller than a group
        source = source.clamp(min=0)
        for layer, k in encoder.layers():
            rows = orders[k][source]
            groups = _layer(layer, features[rows].unflatten(0, (-1, size)), position[rows].unflatten(0, (-1, size)), mask)
            features = groups.flatten(0, 1)[places[k]]
        width, height = encoder.grid
        bev = features.new_zeros(height * width, features.shape[1])
        bev = bev.index_put((coordinates[:, 2] * width + coordinates[:, 3],), features)
        return bev.unflatten(0, (1, height, width)).permute(0, 3, 1, 2)


def _layer(layer: FlatFormerLayer, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
    """A layer on whole groups n, G, C, with a mask n, 1, 1, G on the keys."""
    attention = layer.attn
    weight, bias = attention.attn.in_proj_weight, attention.attn.in_proj_bias
    dim = x.shape[-1]
    query, key = F.linear(x + position, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
    value = F.linear(x, weight[2 * dim :], bias[2 * dim :])
    query, key, value = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5 + mask
    out = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
    x = layer.norm1(x + attention.attn.out_proj(out))
    return layer.norm2(x + perceptron(x, layer.fc1, layer.fc2))


def export_encoder(encoder: FlatFormer, path: str | Path) -> float:
    """Writes the encoder as an ONNX file for any number of voxels of one sample, one or more.

    Inputs `features` (N, C float32) and `coordinates` (N, 4 int64, rows b z y x with b = 0); output `bev` (1, C, H, W).

    Returns:
        The largest difference to the encoder that was found, for fewer voxels than a group and for some groups and a half.

    Raises:
        InputError: where the file cannot be written, and where its output differs by more than `TOLERANCE`.
    """
    encoder = copy.deepcopy(encoder).cpu().eval()
    cells = encoder.grid[0] * encoder.grid[1]
    features, coordinates = _example(encoder, min(2 * encoder.group_size + 1, cells))
    voxels = torch.export.Dim("voxels", min=1)
    return write_onnx(
        EncoderGraph(encoder),
        {"features": features, "coordinates": coordinates},
        "bev",
        path,
        tolerance=TOLERANCE,
        axes={"features": {0: voxels}, "coordinates": {0: voxels}},
        reference=functools.partial(encoder, batch_size=1),
        compared=[_example(encoder, count) for count in {1, min(encoder.group_size * 5 // 2, cells)}],
    )


def _example(encoder: FlatFormer, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    width, height = encoder.grid
    cells = torch.randperm(width * height, generator=generator)[:count]
    coordinates = torch.stack([torch.zeros_like(cells), torch.zeros_like(cells), cells // width, cells % width], dim=1)
    return torch.randn(count, encoder.in_channels, generator=generator), coordinates
