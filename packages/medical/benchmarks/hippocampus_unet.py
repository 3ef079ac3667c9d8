"""The rival of the recipe `hippocampus`: MONAI's 3D U-Net (2.67 M parameters), trained as a user of MONAI would.

    python packages/medical/benchmarks/hippocampus_unet.py --data Task04_Hippocampus --out unet.pt

Dice + cross-entropy, AdamW with a one-cycle schedule to 2e-3, batches of 4 volumes of 48 x 64 x 48, 1,500 steps, small affine
and intensity augmentation, no test-time augmentation. Prints the Dice of the split's validation cases, each in its own
grid, with the wall and processor seconds spent; the run of the recipe on the same split is

    vsuite-medical train --data Task04_Hippocampus --recipe hippocampus --split packages/medical/benchmarks/hippocampus_split.json
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import nibabel as nib
import numpy as np
import torch
import typer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, RandAffined, RandGaussianNoised, RandScaleIntensityd, RandShiftIntensityd

SIZE = (48, 64, 48)
SPLIT = Path(__file__).with_name("hippocampus_split.json")


def load(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalised image and label of one case."""
    image = np.asarray(nib.load(data / "imagesTr" / f"{name}.nii.gz").dataobj, dtype=np.float32)
    label = np.asarray(nib.load(data / "labelsTr" / f"{name}.nii.gz").dataobj).astype(np.int64)
    return (image - image.mean()) / image.std(), label


def fit(array: np.ndarray) -> tuple[np.ndarray, list[slice], list[slice]]:
    """The array centred in SIZE, with the slices that lead from it back to the array: those in SIZE, and those in the array."""
    inner, outer = [], []
    for extent, size in zip(array.shape, SIZE, strict=True):
        overlap, gap, surplus = min(extent, size), max(size - extent, 0) // 2, max(extent - size, 0) // 2
        inner.append(slice(gap, gap + overlap))
        outer.append(slice(surplus, surplus + overlap))
    result = np.zeros(SIZE, array.dtype)
    result[tuple(inner)] = array[tuple(outer)]
    return result, inner, outer


@torch.no_grad()
def evaluate(network: UNet, data: Path, names: list[str]) -> np.ndarray:
    """Mean Dice of the two structures."""
    network.eval()
    rows = []
    for name in names:
        image, label = load(data, name)
        patch, inner, outer = fit(image)
        found = np.zeros(label.shape, np.int64)
        found[tuple(outer)] = network(torch.from_numpy(patch)[None, None]).argmax(1)[0].numpy()[tuple(inner)]
        rows.append([2 * ((found == c) & (label == c)).sum() / ((found == c).sum() + (label == c).sum()) for c in (1, 2)])
    network.train()
    return np.mean(rows, axis=0)


def main(
    data: Annotated[Path, typer.Option(help="Decathlon Task04.")],
    out: Annotated[Path, typer.Option(help="Where the weights go (.pt).")],
    split: Path = SPLIT,
    steps: int = 1500,
    seed: int = 0,
) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    names = json.loads(split.read_text())
    cases = [load(data, name) for name in names["train"]]
    samples = [{"image": torch.from_numpy(fit(i)[0])[None], "label": torch.from_numpy(fit(label)[0])[None]} for i, label in cases]
    augment = Compose(
        [
            RandAffined(
                ["image", "label"],
                prob=0.8,
                rotate_range=(0.25,) * 3,
                scale_range=(0.12,) * 3,
                translate_range=(3,) * 3,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandScaleIntensityd("image", 0.2, prob=0.8),
            RandShiftIntensityd("image", 0.2, prob=0.8),
            RandGaussianNoised("image", prob=0.3, std=0.1),
        ]
    ).set_random_state(seed)
    network = UNet(3, 1, 3, channels=(24, 48, 96, 192), strides=(2, 2, 2), num_res_units=2, norm="instance")
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters")
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    order: list[int] = []
    wall, processor = time.perf_counter(), time.process_time()
    for step in range(1, steps + 1):
        if len(order) < 4:
            order = list(rng.permutation(len(samples)))
        batch = [augment(samples[order.pop()]) for _ in range(4)]
        image, label = (torch.stack([torch.as_tensor(sample[key]) for sample in batch]) for key in ("image", "label"))
        loss = criterion(network(image), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0 or step == steps:
            anterior, posterior = evaluate(network, data, names["val"])
            spent = f"{time.perf_counter() - wall:.0f} s, {time.process_time() - processor:.0f} s of processor time"
            print(
                f"step {step}: Dice {(anterior + posterior) / 2:.4f} (anterior {anterior:.4f}, posterior {posterior:.4f}); {spent}",
                flush=True,
            )
    torch.save(network.state_dict(), out)


if __name__ == "__main__":
    typer.run(main)
