"""Google's ImageNet-21k Vision Transformers (JAX `.npz` files) as the start of a TransUNet."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.core.weights import LoadReport, load_weights, read_state_dict
from vsuite.medical.models.transunet import POSITIONS, TransUNet, resize_positions

TABLE = "Transformer/posembed_input/pos_embedding"
UNUSED = ("cls", "head/", "pre_logits/")
# In this order; names are JAX's with dots, under `transformer.`.
NAMES = (
    (r"^embedding\.", "embeddings.patch_embeddings."),
    (r"^(conv|gn)_root\.", r"embeddings.hybrid_model.root.\1."),
    (r"^(block\d+\.unit\d+)\.", r"embeddings.hybrid_model.body.\1."),
    (r"\.conv_proj\.", ".downsample."),
    (r"^Transformer\.posembed_input\.pos_embedding$", "embeddings.position_embeddings"),
    (r"^Transformer\.encoder_norm\.", "encoder.encoder_norm."),
    (r"^Transformer\.encoderblock_(\d+)\.", r"encoder.layer.\1."),
    (r"\.MultiHeadDotProductAttention_1\.", ".attn."),
    (r"\.MlpBlock_3\.Dense_0\.", ".ffn.fc1."),
    (r"\.MlpBlock_3\.Dense_1\.", ".ffn.fc2."),
    (r"\.LayerNorm_0\.", ".attention_norm."),
    (r"\.LayerNorm_2\.", ".ffn_norm."),
    (r"\.(kernel|scale)$", ".weight"),
)


def load_jax_weights(model: TransUNet, source: str | Path | dict[str, Tensor]) -> LoadReport:
    """Fills ResNet, embeddings and encoder from a JAX ViT file such as `R50+ViT-B_16.npz`; the decoder stays as it is.

    The position table loses its class token and is resized to the model's grid where that differs.

    Args:
        source: the file, or its arrays by name.

    Returns:
        `loaded`, `renamed`, `resized`, `ignored` (the classifier's arrays), and the decoder's names as `fresh`.

    Raises:
        InputError: for a file of another kind, or of another ViT than the model's: which arrays are missing, left over or
            of another shape. The model is unchanged then.
    """
    label = str(source) if isinstance(source, str | Path) else "the given weights"
    arrays = read_state_dict(source)
    if TABLE not in arrays:
        raise InputError(f"{label}: is no JAX Vision Transformer: it lacks {TABLE}")
    ignored = [name for name in arrays if name.startswith(UNUSED)]
    names = {name: _our_name(name) for name in arrays if name not in ignored}
    state = {ours: _our_layout(name, arrays[name]) for name, ours in names.items()}
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith("transformer.")}
    table = resize_positions(POSITIONS, state[POSITIONS], wanted[POSITIONS].shape)
    resized = (
        {} if table is None or table.shape == state[POSITIONS].shape else {POSITIONS: (tuple(arrays[TABLE].shape), tuple(table.shape))}
    )
    state[POSITIONS] = state[POSITIONS] if table is None else table
    problems = LoadReport(
        missing=[name for name in wanted if name not in state],
        unexpected=[name for name, ours in names.items() if ours not in wanted],
        mismatched={
            name: (tuple(value.shape), tuple(wanted[name].shape))
            for name, value in state.items()
            if name in wanted and value.shape != wanted[name].shape
        },
    ).problems()
    if problems:
        raise InputError(f"{label}: is another Vision Transformer than this model's: {problems}")
    report = load_weights(model, state, strict=False)
    report.fresh, report.missing = report.missing, []
    report.renamed, report.resized, report.ignored = names, resized, ignored
    return report


def _our_name(name: str) -> str:
    name = name.replace("/", ".")
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return f"transformer.{name}"


def _our_layout(name: str, value: Tensor) -> Tensor:
    """An array of the file as torch lays it out: outputs first, heads flattened."""
    if name == TABLE:
        return value[:, 1:]  # without the class token
    if not name.endswith("kernel"):
        return value.flatten()
    if value.ndim == 4:
        return value.permute(3, 2, 0, 1)  # H, W, in, out -> out, in, H, W
    if value.ndim == 3:
        value = value.flatten(0, 1) if "/out/" in name else value.flatten(1)  # heads, width -> channels
    return value.T
