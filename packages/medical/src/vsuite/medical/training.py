"""Training a segmentation model: a data set and a recipe in, a run folder out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core import create_model, load_weights, model_info
from vsuite.core.devices import pick_device
from vsuite.core.errors import InputError
from vsuite.core.evaluation import Evaluator
from vsuite.core.files import write_text
from vsuite.core.training import TrainingResult
from vsuite.core.training import train as run_training
from vsuite.core.training.processes import first_alone, process_group
from vsuite.core.training.settings import refuse_run
from vsuite.core.weights import find_weights
from vsuite.medical.data.datasets import DatasetDescription, describe, read_dataset
from vsuite.medical.data.planning import fingerprint, load_plan, make_plan, save_fingerprint, save_plan
from vsuite.medical.data.splits import Split, split_cases
from vsuite.medical.data.training_data import CaseStore, TrainingData, ValidationData, check_augmentation, ignore_index
from vsuite.medical.inference import Predictor
from vsuite.medical.inference.slices import run_network
from vsuite.medical.inference.sliding_window import crop_to
from vsuite.medical.losses import LOSSES
from vsuite.medical.metrics import DiceMetric
from vsuite.medical.pictures import case_picture
from vsuite.medical.plan import Plan
from vsuite.medical.recipes import RECIPES, RunSettings

PICTURES = 4  # validation cases drawn for the report


class SegmentationTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`."""

    def __init__(self, settings: RunSettings, plan: Plan, description: DatasetDescription, split: Split, prepared: Path) -> None:
        cases = {case.name: case for case in description.training}
        self.settings, self.plan = settings, plan
        self.store = CaseStore(prepared, plan)
        self.train_cases = [cases[name] for name in split.train]
        self.validation = ValidationData([cases[name] for name in split.val], plan)
        self.criterion: Callable[..., dict[str, Tensor]] = LOSSES[settings.loss]

    def build_model(self) -> nn.Module:
        model = create_model(self.plan.model, **self.plan.options)
        if self.settings.weights:
            start_from(model, self.settings.weights)
        return model

    def training_data(self) -> TrainingData:
        return TrainingData(self.train_cases, self.plan, self.settings.augmentation, self.store)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        target = batch["label"]
        logits = crop_to(run_network(model, batch["image"], self.plan), target.shape[2:])
        return self.criterion(logits.float(), target, ignore=ignore_index(self.plan))

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """Dice over the validation cases, each in its file's own grid (or the plan's crop): mean, and by structure."""
        predictor = self._predictor(model, device)
        convention = self.settings.validation.convention
        evaluator = Evaluator([DiceMetric(self.plan.foreground, convention=convention, ignore=_ignored_id(self.plan))])
        for index in range(rank, len(self.validation), world_size):
            item = self.validation[index]
            found = predictor.predict_prepared(item.prepared)
            evaluator.update(index, item.name, prediction=found, reference=item.label.array[0])
        return evaluator.compute().summary

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        predictor, paths = self._predictor(model, device), []
        for index in range(min(PICTURES, len(self.validation))):
            item = self.validation[index]
            found = predictor.predict_prepared(item.prepared)
            paths.append(folder / f"{item.name}.png")
            case_picture(
                item.image.array[0], item.label.array[0], found, item.image.affine, paths[-1], item.name, labels=self.plan.foreground
            )
        return paths

    def metadata(self) -> dict[str, Any]:
        return {"plan": self.plan.model_dump(mode="json"), "recipe": self.settings.name}

    def _predictor(self, model: nn.Module, device: torch.device) -> Predictor:
        chosen = self.settings.validation
        plan = self.plan.model_copy(update={"patch_size": chosen.window or self.plan.patch_size})
        return Predictor((model, plan), device=device, overlap=chosen.overlap, blend=chosen.blend, mirror=chosen.mirror)


def _ignored_id(plan: Plan) -> int | None:
    ignored = plan.labels.get("ignore")
    return ignored if isinstance(ignored, int) else None


def start_from(model: nn.Module, source: str | Path, say: Callable[[str], None] = print) -> None:
    """Fills a model from other weights; a layer of another shape (a classifier of other classes, say) stays as initialised.

    Raises:
        InputError: where names are missing or left over: the weights are of another model.
    """
    path = find_weights(source)
    if path.suffix == ".npz":
        _start_from_jax(model, path, say)
        return
    report = load_weights(model, path, strict=False)
    missing = [name for name in report.missing if name not in report.mismatched]
    if missing or report.unexpected or not report.loaded:
        raise InputError(f"{path}: does not fit {type(model).__name__}: {report.problems()}")
    if report.mismatched:
        say(f"{path}: {len(report.loaded)} tensors loaded; of another shape and left as initialised: {', '.join(report.mismatched)}")


def _start_from_jax(model: nn.Module, path: Path, say: Callable[[str], None]) -> None:
    from vsuite.medical.jax_vit import load_jax_weights
    from vsuite.medical.models.transunet import TransUNet

    if not isinstance(model, TransUNet):
        raise InputError(f"{path}: a JAX Vision Transformer starts a TransUNet, not a {type(model).__name__}")
    report = load_jax_weights(model, path)
    resized = f", resized: {', '.join(report.resized)}" if report.resized else ""
    say(f"{path}: {len(report.loaded)} tensors loaded{resized}; the decoder's {len(report.fresh)} are left as initialised")


def check_network(plan: Plan, settings: RunSettings) -> None:
    """Finds out before anything is written whether the network takes the plan's patches and the weights to start from.

    A batch goes through the network without numbers (on torch's "meta" device), which costs neither time nor memory.

    Raises:
        InputError: for options that do not fit, patches too small to be trained on, and weights of another model.
    """
    check_augmentation(settings.augmentation, plan)
    shape = (settings.training.batch_size, len(plan.channels), *plan.patch_size)
    try:
        with torch.device("meta"):
            logits = run_network(create_model(plan.model, **plan.options).train(), torch.empty(shape), plan)
    except (RuntimeError, ValueError) as error:
        batch = f"{shape[0]} {'patch' if shape[0] == 1 else 'patches'} of {' x '.join(map(str, shape[1:]))}"
        advice = "" if isinstance(error, InputError) else "; try larger patches or batches"
        raise InputError(f"{plan.model} cannot be trained on {batch}: {str(error).splitlines()[0]}{advice}") from error
    if logits.shape[1] != plan.num_outputs:
        raise InputError(f"{plan.model} has {logits.shape[1]} outputs, the labels need {plan.num_outputs}")
    if any(out < side for out, side in zip(logits.shape[2:], plan.patch_size, strict=True)):
        got, wanted = (" x ".join(map(str, sides)) for sides in (logits.shape[2:], plan.patch_size))
        raise InputError(f"{plan.model} answers on {got} voxels for a patch of {wanted}: it cannot label every voxel")
    if settings.weights:
        start_from(create_model(plan.model, **plan.options), settings.weights, say=lambda _: None)


def resolve_settings(
    *,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    config: str | Path | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
    **given: Any,
) -> RunSettings:
    """The settings of a run, from a recipe or a settings file and what overrides it.

    Args:
        data: folder of the data set; None takes the settings file's.
        recipe: name or file of a recipe; None is "generic", or "generic_slices" for a 2D model.
        model: what is trained, in place of the recipe's.
        config: a run's `settings.yaml`, in place of a recipe.
        overrides: "training.steps=1000" and the like.
        given: further fields of `RunSettings`; None leaves one as it is.

    Raises:
        InputError: for unknown settings (naming the nearest), wrong values, and where no data set is named.
    """
    takes_slices = model is not None and len(model_info(model).input_size) == 3
    return RECIPES.resolve(
        data=data,
        recipe=recipe,
        config=config,
        overrides=[*([] if model is None else [f"plan.model={model}"]), *overrides],
        default="generic_slices" if takes_slices else None,
        **given,
    )


def train(
    settings: RunSettings, out: str | Path, *, device: str = "auto", resume: bool = False, say: Callable[[str], None] = print
) -> TrainingResult:
    """Looks at the data set, plans, trains, and leaves a run folder.

    Beside what every run folder holds (see `vsuite.core.training`) there are `plan.yaml`, `dataset_fingerprint.json`,
    `split.json` and `prepared/`, the cases as the network sees them. Every process of a distributed run calls this.

    Args:
        settings: see `resolve_settings`.
        out: the run folder.
        resume: continue the run in `out`, with the plan and split that it began with.
        say: takes lines about what was understood; never called in other processes than the first.

    Raises:
        InputError: for everything that is wrong with the data set or the settings, before training starts.
    """
    out = Path(out)
    with process_group(pick_device(device)):
        first_alone(lambda: _prepare_run(settings, out, resume=resume, say=say))
        plan, description = load_plan(out / "plan.yaml"), read_dataset(settings.data)
        split = split_cases(description, file=out / "split.json")
        task = SegmentationTask(settings, plan, description, split, out / "prepared")
        loop = settings.training if split.val else settings.training.model_copy(update={"best_metric": None})
        return run_training(task, loop, out, device=device, resume=resume, resolved=settings)


def _prepare_run(settings: RunSettings, out: Path, *, resume: bool, say: Callable[[str], None]) -> None:
    """Checks every case, and writes fingerprint, split and plan, in this order: a plan that is there stands for all."""
    refuse_run(out, resume=resume)
    if resume and (out / "plan.yaml").exists():
        return
    description = read_dataset(settings.data)
    say(describe(description))
    split = split_cases(
        description,
        file=settings.split,
        fold=settings.fold,
        folds=settings.folds,
        fraction=settings.validation.fraction,
        seed=settings.training.seed,
    )
    chosen = {*split.train, *split.val}
    facts = fingerprint(description, [case for case in description.training if case.name in chosen])
    plan = make_plan(description, facts, settings.plan)
    check_network(plan, settings)
    save_fingerprint(facts, out / "dataset_fingerprint.json")
    write_text(out / "split.json", json.dumps({"train": split.train, "val": split.val}, indent=1) + "\n")
    CaseStore(out / "prepared", plan).prepare([case for case in description.training if case.name in set(split.train)])
    save_plan(plan, out / "plan.yaml")
    spacing = "each file's own" if plan.spacing is None else " x ".join(f"{s:g}" for s in plan.spacing) + " mm"
    say(f"plan: spacing {spacing}, patch {' x '.join(map(str, plan.patch_size))}, {plan.num_outputs} outputs; see {out / 'plan.yaml'}")
    say(f"split: {len(split.train)} cases to train on, {len(split.val)} to validate on")
