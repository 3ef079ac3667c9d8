"""The plain form of the masked autoencoder: every patch embedded, tokens put back in image order, all of them predicted.

The baseline of the benchmark and the oracle of the tests. It shares the fast form's parameter names and nothing of its
operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.bench.plain.vit import plain
from vsuite.medical.models.mae import MaskedAutoencoder


def _forward(self: MaskedAutoencoder, images: Tensor, noise: Tensor | None = None) -> Tensor:
    x = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
    batch, number, dim = x.shape
    noise = torch.rand(batch, number, device=x.device) if noise is None else noise
    shuffle = torch.argsort(noise, dim=1)
    restore = torch.argsort(shuffle, dim=1)
    x = torch.gather(x, 1, shuffle[:, : self.num_kept, None].repeat(1, 1, dim))
    mask = torch.ones(batch, number, device=x.device)
    mask[:, : self.num_kept] = 0
    mask = torch.gather(mask, 1, restore)

    x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1), x], 1)
    for block in self.blocks:
        x = block(x)
    x = self.decoder_embed(self.norm(x))

    hidden = self.mask_token.repeat(batch, number - self.num_kept, 1)
    tokens = torch.cat([x[:, 1:], hidden], 1)
    tokens = torch.gather(tokens, 1, restore[:, :, None].repeat(1, 1, x.shape[2]))
    x = torch.cat([x[:, :1], tokens], 1) + self.decoder_pos_embed
    for block in self.decoder_blocks:
        x = block(x)
    pred = self.decoder_pred(self.decoder_norm(x))[:, 1:]

    p = self.patch_size
    channels, side = images.shape[1], images.shape[2] // p
    target = images.reshape(batch, channels, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(batch, number, -1)
    if self.norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model = plain(MaskedAutoencoder(**options))
    model.forward = _forward.__get__(model)
    return model
