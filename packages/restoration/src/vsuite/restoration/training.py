"""Training a restoration model: folders of pictures and a recipe in, a run folder out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vsuite.core import create_model
from vsuite.core.devices import pick_device
from vsuite.core.errors import InputError
from vsuite.core.evaluation import Evaluator
from vsuite.core.files import atomic_path
from vsuite.core.training import TrainingDataset, TrainingResult
from vsuite.core.training import train as run_training
from vsuite.core.training.processes import first_alone, process_group
from vsuite.core.training.settings import refuse_run
from vsuite.core.training.start import start_from
from vsuite.restoration.data.patches import BicubicPatches, DegradedPatches, PictureStore, to_picture, to_tensor
from vsuite.restoration.data.pictures import Picture, list_pictures, read_rgb
from vsuite.restoration.losses import PIXEL_LOSSES, PerceptualLoss, load_vgg19
from vsuite.restoration.metrics import PsnrSsim
from vsuite.restoration.real_esrgan import RealEsrganDegradation
from vsuite.restoration.resize import crop_to_multiple, imresize
from vsuite.restoration.settings import RECIPES, RunSettings

resolve_settings = RECIPES.resolve


class RestorationTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`."""

    def __init__(self, settings: RunSettings, store: PictureStore, validation: Sequence[Path]) -> None:
        self.settings, self.store, self.validation = settings, store, list(validation)
        self.pixel_loss = PIXEL_LOSSES[settings.loss.pixel]
        self.degrade = RealEsrganDegradation(store.scale, settings.degradations) if settings.degradation == "real_esrgan" else None
        self.perceptual_loss = PerceptualLoss(load_vgg19(settings.loss.perceptual_weights)) if settings.loss.perceptual_weight else None
        self.adversary: Any = None
        if settings.loss.adversarial_weight:
            from vsuite.restoration.adversary import Adversary

            rate, features = settings.loss.discriminator_learning_rate, settings.loss.discriminator_features
            self.adversary = Adversary(rate, settings.training.betas, features=features, seed=settings.training.seed)

    def build_model(self) -> nn.Module:
        settings = self.settings
        model = create_model(settings.model, **settings.options)
        if settings.weights:
            start_from(model, settings.weights)
        return model

    def training_data(self) -> TrainingDataset:
        if self.degrade is not None:
            return DegradedPatches(self.store, self.settings.degradations.side, self.settings.patch, self.degrade)
        return BicubicPatches(self.store, self.settings.patch)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted terms. The discriminator's own, which are no part of what the model minimises, carry no gradient."""
        weights = self.settings.loss
        output = model(batch["low"]).float()
        target = batch.get("sharpened", batch["high"])
        terms = {"pixel": weights.pixel_weight * self.pixel_loss(output, target)}
        if self.perceptual_loss is not None:
            terms["perceptual"] = weights.perceptual_weight * self.perceptual_loss.to(output.device)(output, target)
        if self.adversary is not None:
            learnt = self.adversary.learn(output, batch["high"])
            terms |= {"adversarial": weights.adversarial_weight * self.adversary.loss(output), **learnt}
        return terms

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """PSNR and SSIM of Y and of RGB over the validation pictures; crop = scale, Y not rounded."""
        evaluator = Evaluator([PsnrSsim(self.store.scale)])
        for index in range(rank, len(self.validation), world_size):
            low, high = self._pair(index)
            evaluator.update(index, str(self.validation[index]), prediction=restore(model, low, device), reference=high)
        return evaluator.compute().summary

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Bicubic, restored and original side by side: the middle of some validation pictures."""
        paths = []
        for index in range(min(self.settings.validation.pictures, len(self.validation))):
            low, high = self._pair(index)
            enlarged = imresize(low, size=high.shape[:2])
            paths.append(folder / f"{self.validation[index].stem} - bicubic, restored, original.png")  # the title in the report
            write_comparison(paths[-1], [enlarged, restore(model, low, device), high])
        return paths

    def metadata(self) -> dict[str, Any]:
        return {"recipe": self.settings.name, "degradation": self.settings.degradation, "convention": self.settings.convention}

    def _pair(self, index: int) -> tuple[Picture, Picture]:
        high = crop_to_multiple(read_rgb(self.validation[index]), self.store.scale)
        if self.degrade is None:
            return imresize(high, 1 / self.store.scale, convention=self.settings.convention), high
        low = self.degrade(to_tensor(high)[None], np.random.default_rng(index))["low"]  # the same each time
        return to_picture(low[0]), high


def restore(model: nn.Module, low: Picture, device: torch.device) -> Picture:
    """A whole picture (H, W, 3) through the model, rounded to 8 bits."""
    return to_picture(model(to_tensor(low)[None].to(device))[0])


def write_comparison(path: Path, images: Sequence[npt.NDArray[np.uint8]], side: int = 160) -> None:
    """Writes the middle squares of pictures of one size beside each other, enlarged twice without smoothing."""
    from PIL import Image

    height, width = images[0].shape[:2]
    side = min(side, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    row = np.concatenate([image[top : top + side, left : left + side] for image in images], axis=1)
    with atomic_path(path) as temporary:
        Image.fromarray(row.repeat(2, axis=0).repeat(2, axis=1)).save(temporary)


def scale_of(settings: RunSettings) -> int:
    """How much the model enlarges; also finds out whether it takes the recipe's patches, without computing anything.

    Raises:
        InputError: for a model that does not restore pictures, wrong options, and patches that it cannot take.
    """
    patch = settings.patch
    with torch.device("meta"):
        model = create_model(settings.model, **settings.options)
        scale = getattr(model, "scale", None)
        if not isinstance(scale, int):
            raise InputError(f"{settings.model} does not restore pictures (it has no scale)")
        try:
            shape = tuple(model(torch.empty(1, 3, patch, patch)).shape)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{settings.model} cannot be trained on patches of {patch}: {str(error).splitlines()[0]}") from error
    if shape != (1, 3, patch * scale, patch * scale):
        raise InputError(f"{settings.model} turns RGB patches of {patch} into {shape}; training needs {scale} times the size")
    side = settings.degradations.side
    if settings.degradation == "real_esrgan" and patch * scale > side:
        raise InputError(f"patch: {patch} x {scale} is larger than the squares of {side} that are degraded (degradations.side)")
    if settings.loss.adversarial_weight and patch * scale % 8:
        raise InputError(f"patch: the discriminator takes multiples of 8 pixels, and {patch} x {scale} is none")
    return scale


def train(
    settings: RunSettings, out: str | Path, *, device: str = "auto", resume: bool = False, say: Callable[[str], None] = print
) -> TrainingResult:
    """Prepares the pictures, trains, and leaves a run folder.

    Beside what every run folder holds (see `vsuite.core.training`) there is `prepared/`, the training pictures as 8-bit arrays,
    unless `keep_prepared` is off.
    Every process of a distributed run calls this.

    Args:
        settings: see `resolve_settings`.
        out: the run folder.
        resume: continue the run in `out`.
        say: takes lines about what was understood; never called in other processes than the first.

    Raises:
        InputError: for everything that is wrong with the pictures or the settings, before training starts.
    """
    out = Path(out)
    with process_group(pick_device(device)):
        first_alone(lambda: refuse_run(out, resume=resume))
        scale = scale_of(settings)
        training, validation = split_pictures(settings)
        store = PictureStore(
            out / "prepared" if settings.keep_prepared else None,
            training,
            scale,
            settings.patch * scale,
            settings.convention if settings.degradation == "bicubic" else None,
            enlarge=settings.enlarge_small,
        )
        first_alone(lambda: _prepare(settings, store, validation, say))
        loop = settings.training if validation else settings.training.model_copy(update={"best_metric": None})
        task = RestorationTask(settings, store, validation)
        hooks = [] if task.adversary is None else [task.adversary.hook()]
        return run_training(task, loop, out, device=device, resume=resume, resolved=settings, hooks=hooks)


def split_pictures(settings: RunSettings) -> tuple[list[Path], list[Path]]:
    """Files to train on, and files to validate on: others, or as many as are to be held out, but at most a quarter (rounded up)."""
    pictures = list_pictures(settings.data)
    if settings.validation_data is not None:
        return pictures, list_pictures(settings.validation_data)
    if settings.validation.held_out and len(pictures) == 1:
        raise InputError("one picture is too few to hold any out: name others (validation_data), or set validation.held_out=0")
    count = min(settings.validation.held_out, math.ceil(len(pictures) / 4))
    held_out = {len(pictures) * number // count for number in range(count)}
    return [path for i, path in enumerate(pictures) if i not in held_out], [pictures[i] for i in sorted(held_out)]


def _prepare(settings: RunSettings, store: PictureStore, validation: Sequence[Path], say: Callable[[str], None]) -> None:
    if settings.weights:
        start_from(create_model(settings.model, **settings.options), settings.weights, say=lambda _: None)
    if settings.loss.perceptual_weight:
        load_vgg19(settings.loss.perceptual_weights)
    store.prepare()
    fewer = settings.validation_data is None and len(validation) < settings.validation.held_out
    why = f" (a quarter, not {settings.validation.held_out})" if fewer else ""
    say(f"{len(store)} pictures to train on, {len(validation)} to validate on{why}; x{store.scale}, {settings.degradation}")
