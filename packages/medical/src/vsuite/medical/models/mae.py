"""Masked autoencoder: a ViT learns from X-rays without labels by painting in what is hidden (Xiao et al., WACV 2023; He et al., CVPR 2022).

Only the visible patches pass through the encoder. The decoder works on the shuffled tokens, visible ones first, since their
order means nothing to a transformer once positions are added: so the hidden tokens are its last rows, and the last block, the
norm, the prediction and the loss are computed for those alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.models.vit import ENCODER_KEYS, Block, PatchEmbedding, check_sizes, infer_encoder, initialise, resize_tables
from vsuite.core.nn import sincos_position_grid
from vsuite.core.registry import PublishedLayout, PublishedResult, Variant, register_variants


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """B, C, S, S -> B, N, P: patches row-major, the values of each as row, column, channel; P = patch_size^2 C.

    Raises:
        InputError: for images that are not square or whose side is no multiple of the patch size.
    """
    height, width = images.shape[2:]
    if height != width or height % patch_size:
        raise InputError(f"patches of {patch_size} need square images whose side is a multiple of that; got {height} x {width}")
    patches = images.unflatten(2, (-1, patch_size)).unflatten(4, (-1, patch_size))  # B, C, h, p, w, p
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of `patchify`: B, N, P -> B, C, S, S."""
    side = int(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1] or patches.shape[2] % patch_size**2:
        raise InputError(f"{patches.shape[1]} patches of {patches.shape[2]} values make no square image of patches of side {patch_size}")
    grid = patches.unflatten(1, (side, side)).unflatten(3, (patch_size, patch_size, -1))  # B, h, w, p, p, C
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class Reconstruction(NamedTuple):
    """What a masked autoencoder makes of a batch.

    Attributes:
        latent: of the class token and the visible patches, in shuffled order: B, 1 + kept, D.
        mask: 1 for hidden patches, 0 for visible ones, in image order: B, N.
        ids_restore: where each patch of the image is in the shuffled order: B, N.
        pred: the values of all patches in image order, as `patchify` orders them: B, N, P.
        loss: as `forward` gives it; NaN where nothing is hidden.
    """

    latent: Tensor
    mask: Tensor
    ids_restore: Tensor
    pred: Tensor
    loss: Tensor


class MaskedAutoencoder(nn.Module):
    """Square images -> the loss of painting in their hidden patches.

    Args:
        in_channels: of the image; grey X-rays are repeated to 3.
        image_size: side in pixels, a multiple of the patch size.
        patch_size, embed_dim, depth, num_heads, mlp_ratio: of the encoder; see `ViT`.
        decoder_embed_dim, decoder_depth, decoder_num_heads: of the decoder.
        mask_ratio: share of the patches that is hidden, in [0, 1); int(N (1 - ratio)) of them stay, one at least.
        norm_pix_loss: compare with each patch normalised by its own mean and (unbiased) variance.

    Raises:
        InputError: for sizes that do not divide, a mask that leaves no patch, and images of another size.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 2,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.9,
        norm_pix_loss: bool = False,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "mlp_ratio": mlp_ratio}
        check_sizes(embed_dim=embed_dim, depth=depth, num_heads=num_heads, **shared)
        check_sizes("decoder_", embed_dim=decoder_embed_dim, depth=decoder_depth, num_heads=decoder_num_heads, **shared)
        if in_channels < 1:
            raise InputError(f"in_channels must be 1 or more; got {in_channels}")
        side = image_size // patch_size
        self.num_kept = int(side**2 * (1 - mask_ratio)) if 0 <= mask_ratio < 1 else 0
        if self.num_kept < 1:
            raise InputError(f"mask_ratio must lie in [0, 1) and leave one of the {side**2} patches; got {mask_ratio}")
        self.in_channels, self.image_size, self.patch_size = in_channels, image_size, patch_size
        self.norm_pix_loss = norm_pix_loss
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_position_grid(embed_dim, side, num_extra=1)[None], requires_grad=False)
        self.patch_embed = PatchEmbedding(in_channels, embed_dim, patch_size)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(sincos_position_grid(decoder_embed_dim, side, num_extra=1)[None], requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(decoder_embed_dim, decoder_num_heads, mlp_ratio) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_channels)
        self.apply(initialise)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The mean squared error of the hidden patches, a scalar.

        Args:
            images: B, in_channels, image_size, image_size, normalised.
            noise: B, N; the patches of the least noise stay visible. None draws it anew.

        Raises:
            InputError: where the mask ratio hides no patch, so that there is no loss.
        """
        if self.num_kept == self.pos_embed.shape[1] - 1:
            raise InputError("a loss needs hidden patches: mask_ratio leaves all of them visible")
        patches, order = self._shuffle(images, noise)
        hidden = self._decode(self._encode(patches, order), order, slice(1 + self.num_kept, None))
        return self._loss(hidden, patches[:, self.num_kept :])

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Everything the model finds out about a batch, for pictures and tests; arguments as `forward`'s."""
        patches, order = self._shuffle(images, noise)
        latent = self._encode(patches, order)
        shuffled = self._decode(latent, order, slice(1, None))
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        ids_restore = torch.empty_like(order).scatter_(1, order, places)
        mask = (ids_restore >= self.num_kept).to(images.dtype)
        loss = self._loss(shuffled[:, self.num_kept :], patches[:, self.num_kept :])
        return Reconstruction(latent, mask, ids_restore, _gather(shuffled, ids_restore), loss)

    def paint(self, images: Tensor, found: Reconstruction) -> Tensor:
        """The images with their hidden patches painted in as predicted: B, C, S, S on the scale of the images."""
        patches, pred = patchify(images, self.patch_size), found.pred
        if self.norm_pix_loss:  # each patch's own mean and contrast are not predicted: they are taken from the image
            mean, std = _statistics(patches)
            pred = pred * std + mean
        return unpatchify(torch.where(found.mask[..., None] > 0, pred.to(patches.dtype), patches), self.patch_size)

    def _shuffle(self, images: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """The patches (B, N, P) from least to most noise, and which of the image each one is (B, N)."""
        side = self.image_size
        if images.ndim != 4 or images.shape[1:] != (self.in_channels, side, side):
            wanted = f"B, {self.in_channels}, {side}, {side}"
            raise InputError(f"this masked autoencoder takes {wanted}; got {', '.join(map(str, images.shape))}")
        if not images.is_floating_point():
            raise InputError(f"a masked autoencoder takes floating-point pixels; got {images.dtype}")
        number = self.pos_embed.shape[1] - 1
        if noise is None:
            noise = torch.rand(len(images), number, device=images.device)
        if noise.shape != (len(images), number):
            raise InputError(f"noise must be of shape {len(images)}, {number}; got {', '.join(map(str, noise.shape))}")
        order = noise.argsort(1)
        return _gather(patchify(images, self.patch_size), order), order

    def _encode(self, patches: Tensor, order: Tensor) -> Tensor:
        """Shuffled patches -> latent B, 1 + kept, D: the class token and the visible patches; no other is computed."""
        weight = self.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)  # of the values of a patch in their order
        tokens = F.linear(patches[:, : self.num_kept], weight, self.patch_embed.proj.bias)
        first = self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        x = torch.cat([first, tokens], 1) + _positions(self.pos_embed, order[:, : self.num_kept])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _decode(self, latent: Tensor, order: Tensor, rows: slice) -> Tensor:
        """latent -> the predicted values of the shuffled tokens (the class token is row 0) that `rows` names."""
        visible = self.decoder_embed(latent)
        number = order.shape[1] - self.num_kept
        x = torch.cat([visible, self.mask_token.to(visible.dtype).expand(len(visible), number, -1)], 1)
        x = x + _positions(self.decoder_pos_embed, order)
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks[-1](x, rows)))

    def _loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """The mean squared error, in float32; pred, target: B, M, P of the same patches."""
        pred, target = pred.float(), target.float()
        if self.norm_pix_loss:
            mean, std = _statistics(target)
            target = (target - mean) / std
        return F.mse_loss(pred, target)


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of the unbiased variance) of each patch: B, N, 1."""
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def _gather(tokens: Tensor, order: Tensor) -> Tensor:
    """The tokens (B, N, C) of each sample in an order of its own (B, M)."""
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))


def _positions(table: Tensor, order: Tensor) -> Tensor:
    """The rows of a table (1, 1 + N, C) for the class token and patches in an order of each sample's own (B, M): B, 1 + M, C."""
    return table[0, F.pad(order + 1, (1, 0))]


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return infer_encoder(state) | {
        "decoder_embed_dim": state["mask_token"].shape[2],
        "decoder_depth": sum(bool(re.fullmatch(r"decoder_blocks\.\d+\.norm1\.weight", name)) for name in state),
    }


LAYOUT = PublishedLayout(
    build=MaskedAutoencoder,
    infer=_infer,
    keys=(*ENCODER_KEYS, "mask_token", "decoder_pos_embed", "decoder_pred.weight"),
    assumed={"decoder_num_heads": 16, "mask_ratio": 0.9, "norm_pix_loss": False},
    resize=resize_tables,
)


def _published(pre_training: str, chest: float, chexpert: float, covid: float) -> tuple[PublishedResult, ...]:
    """After fine-tuning, as ViT."""
    return (
        PublishedResult(f"ChestX-ray14 after fine-tuning, pre-trained on {pre_training}", "mean AUC", chest, "%"),
        PublishedResult(f"CheXpert after fine-tuning, pre-trained on {pre_training}", "mean AUC", chexpert, "%"),
        PublishedResult(f"COVIDx after fine-tuning, pre-trained on {pre_training}", "accuracy", covid, "%"),
    )


BASE = {"embed_dim": 768, "num_heads": 12}
LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "decoder_depth": 8}
HUGE = {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16, "decoder_depth": 8}

register_variants(
    MaskedAutoencoder,
    {
        "mae_vit_small_patch16_dec512d2b": Variant({}, "28.7 M parameters, 1.8 G MACs", _published("0.3 M X-rays", 82.3, 89.2, 95.2)),
        "mae_vit_small_patch16_dec128d2b": Variant({"decoder_embed_dim": 128}, "22.2 M parameters, 0.6 G MACs"),
        "mae_vit_small_patch16_dec512d8b": Variant({"decoder_depth": 8}, "47.6 M parameters"),
        "mae_vit_base_patch16_dec512d2b": Variant(BASE, "93.0 M parameters"),
        "mae_vit_base_patch16_dec512d8b": Variant(
            BASE | {"decoder_depth": 8}, "111.9 M parameters, 6.9 G MACs", _published("0.5 M X-rays", 83.0, 89.3, 95.3)
        ),
        "mae_vit_large_patch16_dec512d8b": Variant(LARGE, "329.5 M parameters"),
        "mae_vit_huge_patch14_dec512d8b": Variant(HUGE, "657.1 M parameters"),
    },
    system="medical_mae",
    task="pretraining",
    paper="Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification, Xiao et al., WACV 2023, arXiv 2210.12843",
    licence="Apache-2.0 (official code and weights)",
    layout=LAYOUT,
)
