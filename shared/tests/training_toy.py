"""A small classification task with dropout and augmentation; run as a script, it trains in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vsuite.core.training import TrainingSettings, train

SAMPLES = 37

# Smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


class ToyData:
    """Points in six dimensions and the side of a plane that they lie on."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.points = rng.normal(size=(SAMPLES, 6)).astype(np.float32)
        self.sides = (self.points.sum(axis=1) > 0).astype(np.int64)

    def __len__(self) -> int:
        return SAMPLES

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        noise = rng.normal(scale=0.1, size=6).astype(np.float32)
        return {
            "point": torch.from_numpy(self.points[index] + noise),
            "side": torch.tensor(self.sides[index]),
            "index": torch.tensor(index),
        }


class ToyTask:
    """The task; `kill_at` ends the process without warning in that forward pass, `nan_at` makes its loss NaN.

    `interrupt_at` and `again_at` are passes in which the user presses Ctrl-C.
    """

    def __init__(self, *, dropout: float = 0.3, kill_at: int = -1, nan_at: int = -1, interrupt_at: int = -1, again_at: int = -1) -> None:
        self.dropout, self.kill_at, self.nan_at = dropout, kill_at, nan_at
        self.interrupts = (interrupt_at, again_at)
        self.passes = 0
        self.seen: list[int] = []

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Dropout(self.dropout), nn.Linear(16, 2))

    def training_data(self) -> ToyData:
        return ToyData()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.passes += 1
        if self.passes == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.passes in self.interrupts:
            os.kill(os.getpid(), signal.SIGINT)
        self.seen += batch["index"].tolist()
        logits = model(batch["point"])
        entropy = nn.functional.cross_entropy(logits, batch["side"])
        if self.passes == self.nan_at:
            entropy = entropy * float("nan")
        return {"cross_entropy": entropy, "size": 1e-3 * logits.float().square().mean()}

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        torch.rand(3)  # must not disturb the training
        data = ToyData()
        logits = model(torch.from_numpy(data.points).to(device)).float().cpu()
        right = logits.argmax(dim=1).numpy() == data.sides
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(data.sides))
        return {"loss": loss.item(), "accuracy": right.mean(), "accuracy/one": right[data.sides == 1].mean()}

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        (folder / "case_0.png").write_bytes(PNG)
        return [folder / "case_0.png"]

    def metadata(self) -> dict[str, Any]:
        return {"plan": {"spacing": [1.0, 2.0]}}


def main() -> None:
    """Arguments: the run folder, settings as JSON, then options of the task as name=number."""
    torch.set_num_threads(1)
    options = {name: float(value) if name == "dropout" else int(value) for name, value in (text.split("=") for text in sys.argv[3:])}
    task = ToyTask(**options)
    folder, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    final: dict[str, Tensor] = {}
    from mmengine.hooks import Hook

    class Keep(Hook):
        def after_train(self, runner: Any) -> None:
            final.update({name: value.clone() for name, value in runner.network.state_dict().items()})

    train(task, TrainingSettings(**json.loads(sys.argv[2])), folder, device="cpu", hooks=[Keep()])
    torch.save({"weights": final, "seen": torch.tensor(task.seen)}, folder.parent / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
