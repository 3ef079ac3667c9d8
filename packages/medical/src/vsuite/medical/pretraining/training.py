"""Pre-training a masked autoencoder: pictures and a recipe in, a run folder out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vsuite.core import create_model
from vsuite.core.devices import pick_device
from vsuite.core.errors import InputError
from vsuite.core.images.augmentation import AugmentationSettings
from vsuite.core.images.datasets import ALL, ImageDataset, Sample, check_images, divide
from vsuite.core.images.files import read_image
from vsuite.core.images.loading import TrainingData, load_batches
from vsuite.core.images.predictor import find_images
from vsuite.core.images.preprocessing import PreprocessingSettings, preprocess, restore
from vsuite.core.images.recipes import ValidationSettings
from vsuite.core.images.training import keep_data, loop_settings
from vsuite.core.registry import model_info
from vsuite.core.training import TrainingResult, TrainingSettings
from vsuite.core.training import train as run_training
from vsuite.core.training.processes import first_alone, from_all, process_group
from vsuite.core.training.recipes import Recipes
from vsuite.core.training.settings import MAY_CHANGE, refuse_run
from vsuite.core.training.start import start_from
from vsuite.medical.classification.datasets import holds_chestxray14, read_dataset
from vsuite.medical.data.slices import cut_folder, holds_volumes
from vsuite.medical.models.mae import MaskedAutoencoder, patchify, unpatchify

PICTURES = 8  # validation pictures that are drawn, three tiles each
LETTERS = 16  # of a picture's name that fit below its tile, in each of two lines


class PretrainingSettings(BaseModel):
    """A whole recipe.

    Attributes:
        name, about: what it is called, and what it is for.
        model, options: a registered masked autoencoder, and options of its builder (`mask_ratio`, `norm_pix_loss`, ...).
        training: length, optimiser, schedule; see `TrainingSettings`.
        augmentation: crops and flips as a rule; mixing pictures is left out, whatever it says.
        image: how a picture becomes the network's input; its size also is the model's `image_size`.
        validation: how many pictures are held back where the data set does not say, and how often they are painted.
        check_images: pictures that are decoded before training starts, spread evenly.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    about: str = ""
    model: str = "mae_vit_small_patch16_dec512d2b"
    options: dict[str, Any] = {}
    training: TrainingSettings
    augmentation: AugmentationSettings = AugmentationSettings(crop_scale=(0.5, 1.0))
    image: PreprocessingSettings = PreprocessingSettings(size=(224, 224))
    validation: ValidationSettings = ValidationSettings(fraction=0.02)
    check_images: int = Field(default=2000, ge=0, json_schema_extra=MAY_CHANGE)


class RunSettings(PretrainingSettings):
    """Everything that decides a run; it is kept as the run's `settings.yaml`.

    Attributes:
        data: see `read_pictures`.
        weights: file or name of weights of a masked autoencoder to start from; None starts from scratch.
    """

    data: str = Field(min_length=1)
    weights: str | None = None


RECIPES = Recipes(
    ("vsuite.medical.pretraining",),
    PretrainingSettings,
    RunSettings,
    default="chestxray14_mae_vit_s",
    nothing_named="no data is named: give a folder of pictures or volumes, or a .csv",
)
list_recipes, load_recipe, resolve_settings = RECIPES.names, RECIPES.load, RECIPES.resolve


class PretrainingTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`."""

    def __init__(self, settings: RunSettings, dataset: ImageDataset, say: Callable[[str], None]) -> None:
        self.settings, self.dataset, self.say = settings, dataset, say
        self.validation = dataset.splits.get("val", [])

    def build_model(self) -> nn.Module:
        model = build_autoencoder(self.settings)
        if self.settings.weights:
            start_from(model, self.settings.weights, self.say)
        return model

    def training_data(self) -> TrainingData:
        return TrainingData(self.dataset.splits["train"], 0, self.settings.augmentation, self.settings.image)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"reconstruction": model(batch["image"])}

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """`loss`: of pictures that were held back, each under a mask of its own that is the same at every validation."""
        total, seen, start = 0.0, 0, rank
        for batch in load_batches(self.validation[rank::world_size], self.settings.image, self.settings.training.batch_size):
            for _, image in batch:
                if isinstance(image, InputError):
                    raise image
            images = torch.stack([image for _, image in batch if isinstance(image, Tensor)]).to(device)
            loss = model(images, self._noise([start + world_size * index for index, _ in batch]).to(device))
            total, seen = total + float(loss) * len(images), seen + len(images)
        sums = np.concatenate(list(from_all(np.array([[total, seen]]))))
        return {"loss": float(sums[:, 0].sum() / max(sums[:, 1].sum(), 1))}

    def _noise(self, indices: Sequence[int]) -> Tensor:
        side = side_of(self.settings) // patch_of(self.settings)
        return torch.stack([torch.rand(side * side, generator=torch.Generator().manual_seed(index)) for index in indices])

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Some validation pictures: whole, what the network sees of them, and with the rest painted in."""
        from vsuite.core.images.pictures import Tile, contact_sheet, shorten

        assert isinstance(model, MaskedAutoencoder)
        if not self.validation:
            return []
        indices = np.unique(np.linspace(0, len(self.validation) - 1, PICTURES).astype(int)).tolist()
        inputs = [preprocess(read_image(self.validation[index].image), self.settings.image) for index in indices]
        images = torch.stack(inputs).to(device)
        found = model.reconstruct(images, self._noise(indices).to(device))
        painted = model.paint(images, found)
        seen = unpatchify(patchify(images, model.patch_size) * (1 - found.mask[..., None]), model.patch_size)
        tiles = []
        for row, index in enumerate(indices):
            name = Path(self.validation[index].name).stem
            name = "\n".join((name[:LETTERS], shorten(name[LETTERS:], LETTERS))) if len(name) > LETTERS else name
            parts = zip((images, seen, painted), (name, "seen", "painted"), strict=True)
            tiles += [Tile(restore(part[row], self.settings.image), caption) for part, caption in parts]
        path = folder / "reconstruction.png"
        known = " (patches as bright and rich in contrast as in the picture)" if model.norm_pix_loss else ""
        contact_sheet(tiles, path, f"whole, what the network sees, what it paints{known}", columns=6)
        return [path]

    def metadata(self) -> dict[str, Any]:
        return {"pretraining": {"image": self.settings.image.model_dump(mode="json")}, "recipe": self.settings.name}


def build_autoencoder(settings: PretrainingSettings) -> nn.Module:
    """The recipe's model, new, for pictures of the recipe's size.

    Raises:
        InputError: for unknown models and options, and models that are no masked autoencoder.
    """
    info = model_info(settings.model)
    if info.task != "pretraining":
        raise InputError(f"{info.name} is a model for {info.task}; `vsuite models --task pretraining` lists those that are pre-trained")
    fixed = {"image_size": side_of(settings), "in_channels": settings.image.channels}
    return create_model(info.name, **(settings.options | fixed))


def side_of(settings: PretrainingSettings) -> int:
    """Side of the square input in pixels."""
    height, width = settings.image.size or (224, 224)
    if height != width:
        raise InputError(f"image.size: masked autoencoders take square pictures; got {height} x {width}")
    return height


def patch_of(settings: PretrainingSettings) -> int:
    """Side of a patch in pixels."""
    return int({**model_info(settings.model).options, **settings.options}["patch_size"])


def train(
    settings: RunSettings, out: str | Path, *, device: str = "auto", resume: bool = False, say: Callable[[str], None] = print
) -> TrainingResult:
    """Looks at the pictures, pre-trains, and leaves a run folder, in which the slices of volumes lie as `prepared/`.

    Args:
        settings: see `resolve_settings`.
        out: the run folder.
        resume: continue the run in `out`.
        say: takes lines about what was understood; never called in other processes than the first.

    Raises:
        InputError: for everything that is wrong with the data or the settings, before training starts.
    """
    out = Path(out)
    with process_group(pick_device(device)) as place:
        first_alone(lambda: refuse_run(out, resume=resume))
        say = say if place.rank == 0 else lambda line: None
        _check_network(settings)
        first_alone(lambda: _prepare(Path(settings.data), out))
        dataset = divide(read_pictures(settings.data, out / "prepared"), settings.validation.fraction, settings.training.seed)
        if not dataset.splits["train"]:
            raise InputError(f"{settings.data}: there are no pictures to train on")
        say(f"{dataset.source}: {len(dataset.splits['train'])} pictures to train on, {len(dataset.splits['val'])} to validate on")
        check_images([*dataset.splits["train"], *dataset.splits["val"]], settings.check_images)
        first_alone(lambda: keep_data(dataset, out))
        task = PretrainingTask(settings, dataset, say)
        loop = loop_settings(settings.training, settings.validation, dataset, place.world_size)
        return run_training(task, loop, out, device=device, resume=resume, resolved=settings)


def _prepare(source: Path, out: Path) -> None:
    """Cuts volumes into pictures, all or none."""
    prepared, building = out / "prepared", out / "prepared.new"
    if prepared.exists() or not holds_volumes(source):
        return
    shutil.rmtree(building, ignore_errors=True)
    cut_folder(source, building, progress=True)
    building.replace(prepared)


def read_pictures(source: str | Path, prepared: Path | None = None) -> ImageDataset:
    """The pictures of a folder (with its subfolders), of a `.csv` or ChestX-ray14's folder, whose labels are not looked at, or of volumes.

    Test pictures are left out.

    Args:
        prepared: where the slices lie if `source` is a folder of volumes.

    Raises:
        InputError: for what does not exist or holds no pictures.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv" or holds_chestxray14(path):
        found = read_dataset(path).splits
        splits = {split: [_unlabelled(sample) for sample in samples] for split, samples in found.items() if split != "test"}
        return ImageDataset(path, [], True, splits)
    cut = prepared if prepared is not None and prepared.is_dir() else None
    samples, _ = find_images([cut or path])
    grouped = [Sample(s.name, s.image, (), Path(s.name).name.rpartition("_z")[0] if cut else "") for s in samples]
    return ImageDataset(path, [], True, {ALL: grouped})


def _unlabelled(sample: Sample) -> Sample:
    return Sample(sample.name, sample.image, (), sample.group)


def _check_network(settings: RunSettings) -> None:
    """Finds out before anything is written whether the network takes the pictures, and the weights to start from."""
    with torch.device("meta"):
        model = build_autoencoder(settings)
        model(torch.empty(settings.training.batch_size, settings.image.channels, side_of(settings), side_of(settings)))
    if settings.weights:
        start_from(build_autoencoder(settings), settings.weights, lambda line: None)
