"""Dividing the cases of a data set into training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError, unknown
from vsuite.medical.data.datasets import DatasetDescription, read_json
from vsuite.medical.data.files import stem_of
from vsuite.medical.data.labels import first_items


@dataclass(frozen=True)
class Split:
    """Names of the training cases of a data set, divided."""

    train: list[str]
    val: list[str]


def split_cases(
    description: DatasetDescription,
    *,
    file: str | Path | None = None,
    fold: int | None = None,
    folds: int = 5,
    fraction: float = 0.2,
    seed: int = 0,
) -> Split:
    """Divides the cases into training and validation; without file and fold, as the data set comes divided, if it does.

    Args:
        file: a JSON file with {"train": [names], "val": [names]}, or a list of such, as nnU-Net's splits_final.json,
            of which `fold` picks one.
        fold: without a file, the number (from 0) of the part that validates, of `folds` equal parts.
        fraction: without file and fold, the share of cases that validates; 0 trains on all.
        seed: of the shuffle behind folds and fraction. The same names and seed give the same split everywhere.
    """
    names = sorted(case.name for case in description.training)
    if file is not None:
        return _read_split(Path(file), fold, names)
    if fold is None and description.own_split is not None:
        return Split(*description.own_split)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    if fold is not None:
        if not 2 <= folds <= len(names):
            raise InputError(f"folds must lie between 2 and the number of cases, {len(names)}; got {folds}")
        if not 0 <= fold < folds:
            raise InputError(f"fold must lie between 0 and {folds - 1}; got {fold}")
        chosen = set(shuffled[fold::folds])
    else:
        if not 0 <= fraction < 1:
            raise InputError(f"the validation fraction must lie in [0, 1); got {fraction}")
        count = round(fraction * len(names))
        chosen = set(shuffled[: min(max(count, fraction > 0), len(names) - 1)])
    return Split([n for n in names if n not in chosen], [n for n in names if n in chosen])


def _read_split(path: Path, fold: int | None, names: Sequence[str]) -> Split:
    content = read_json(path)
    if isinstance(content, list):
        if not content or not 0 <= (fold or 0) < len(content):
            raise InputError(f"{path}: has folds 0 to {len(content) - 1}; got {fold}")
        content = content[fold or 0]
    train, val = (_names(content, key, path) for key in ("train", "val"))
    known = set(names)
    for name in [*train, *val]:
        if name not in known:
            raise InputError(f"{path}: {unknown('case', name, names)}")
    if both := sorted(set(train) & set(val)):
        raise InputError(f"{path}: cases in both train and val: {first_items(both)}")
    if not train:
        raise InputError(f"{path}: no training cases in it")
    return Split(train, val)


def _names(content: Any, key: str, path: Path) -> list[str]:
    """One list of a split; file names lose their ending."""
    group = content.get(key) if isinstance(content, dict) else None
    if not isinstance(group, list) or not all(isinstance(name, str) for name in group):
        raise InputError(f'{path}: a split is {{"train": [names], "val": [names]}}, or a list of such')
    return [stem_of(Path(name)) for name in group]
