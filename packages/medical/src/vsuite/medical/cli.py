"""The command line `vsuite-medical`: train, predict, evaluate, export, demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vsuite.core.batch import check_failed, refuse_existing
from vsuite.core.cli import options
from vsuite.core.cli.app import new_app, run
from vsuite.core.errors import InputError

app = new_app("vsuite-medical", "Medical images: from files (NIfTI, DICOM, PNG) to trained, evaluated and exported models.")

DATA = (
    "Data set: Decathlon or nnU-Net folder, or images/ and labels/; to classify: ChestX-ray14's folder, a folder of a folder a class, "
    "or a .csv; to pre-train: any of these, or a folder of pictures or volumes."
)
OptionalData = Annotated[Path | None, typer.Option("--data", help=DATA)]
PlanOption = Annotated[
    str | None,
    typer.Option("--plan", help="For weights that hold none, such as the authors': a plan.yaml, or the recipe (brats2017)."),
]
Task = Annotated[
    Literal["segmentation", "classification"] | None,
    typer.Option("--task", help="segmentation or classification [default: that of the weights, else segmentation]."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output.")]
Overlap = Annotated[float, typer.Option("--overlap", help="Of neighbouring windows, 0 to below 1.")]
Blend = Annotated[Literal["gaussian", "constant"], typer.Option("--blend", help="Weights of overlapping windows.")]


@app.command()
def train(
    data: OptionalData = None,
    task: Annotated[
        Literal["segmentation", "classification", "pretraining"],
        typer.Option("--task", help="segmentation of volumes, classification of pictures, or pretraining without labels."),
    ] = "segmentation",
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Name (see the README) or a YAML file. [default: generic, of 2D models generic_slices; to classify generic, "
            "with --weights transfer; to pre-train chestxray14_mae_vit_s]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [default: runs/DATASET-RECIPE].")] = None,
    config: options.Config = None,
    model: options.OptionalModel = None,
    weights: options.Weights = None,
    split: Annotated[Path | None, typer.Option("--split", help="Segmentation: JSON with the names of train and val cases.")] = None,
    fold: Annotated[int | None, typer.Option("--fold", help="Which of --folds parts (or of the split file) validates.")] = None,
    folds: Annotated[int | None, typer.Option("--folds", help="Parts of the cross-validation [default: 5].")] = None,
    device: options.Device = "auto",
    precision: options.OptionalPrecision = None,
    batch_size: options.OptionalBatchSize = None,
    seed: options.OptionalSeed = None,
    freeze: Annotated[
        Literal["none", "backbone"] | None, typer.Option("--freeze", help="Classification: backbone trains the head alone, a linear probe.")
    ] = None,
    resume: options.Resume = False,
    overrides: options.Set = [],  # noqa: B006
) -> None:
    """Train on a data set, by a recipe."""
    if task != "segmentation":
        from vsuite.medical.classification import cli as commands

        commands.refuse(task, {"split": split, "fold": fold is not None, "folds": folds})
        chosen = {"model": model, "training.precision": precision, "training.batch_size": batch_size, "training.seed": seed}
        commands.train(
            task,
            data=data,
            recipe=recipe,
            out=out,
            config=config,
            weights=weights,
            device=device,
            resume=resume,
            freeze=freeze,
            chosen=chosen,
            overrides=overrides,
        )
        return
    if freeze is not None:
        raise InputError("--freeze: only with --task classification")
    from vsuite.medical.training import resolve_settings
    from vsuite.medical.training import train as run_training

    chosen = {"training.precision": precision, "training.batch_size": batch_size, "training.seed": seed}
    settings = resolve_settings(
        data=data,
        recipe=recipe,
        config=options.settings_of_run(out, config, recipe, resume=resume),
        model=model,
        overrides=options.overrides_of(chosen, overrides),
        weights=weights,
        split=None if split is None else str(split),
        fold=fold,
        folds=folds,
    )
    out = out or Path("runs") / f"{Path(settings.data).resolve().name}-{settings.name}"
    result = run_training(settings, out, device=device, resume=resume)
    options.say_trained(result, _metrics(result.best_metrics), "vsuite-medical predict --weights {weights} IMAGES")


def _metrics(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items()) or "the last weights (nothing to validate on)"


@app.command()
def predict(
    inputs: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Images, folders of them, or a folder of a DICOM series.")],
    weights: options.Ensemble,
    task: Task = None,
    out: options.Out = Path("predictions"),
    plan: PlanOption = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.OptionalBatchSize = None,
    overlap: Overlap = 0.5,
    blend: Blend = "gaussian",
    slice_zoom: Annotated[
        bool | None,
        typer.Option(
            "--slice-zoom/--slice-windows", help="2D: zoom whole slices to the network's size, or cover them [default: as trained]."
        ),
    ] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over mirrored images; slower, a little better.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities (.npy, float16).")] = False,
    nearest: Annotated[bool, typer.Option("--nearest", help="Resample labels, not logits: faster, rougher edges.")] = False,
    largest_component: Annotated[
        list[str], typer.Option("--largest-component", help="Keep the largest part of this label (name or id); may be repeated.")
    ] = [],  # noqa: B006
    smallest_component: Annotated[float, typer.Option("--smallest-component", min=0, help="Drop parts below so many mm^3.")] = 0.0,
    explain: Annotated[
        Literal["rollout", "occlusion"] | None, typer.Option("--explain", help="Classification: draw what the network looked at.")
    ] = None,
    resume: options.Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Label images, each in its own grid; or name what is in pictures."""
    from vsuite.medical.classification import cli as commands

    if commands.task_of(task, weights) != "segmentation":
        flags = {"plan": plan, "mirror": mirror, "probabilities": probabilities, "nearest": nearest, "resume": resume}
        flags |= {"slice-zoom" if slice_zoom else "slice-windows": slice_zoom is not None}
        commands.refuse("classification", {**flags, "largest-component": largest_component, "smallest-component": smallest_component})
        commands.predict(inputs, weights, out, device=device, precision=precision, batch_size=batch_size, explain=explain)
        return
    if explain is not None:
        raise InputError("--explain: only with --task classification")
    from vsuite.core.devices import pick_device
    from vsuite.medical.inference import Predictor, predict_files

    sources = [_with_plan(one, plan) for one in weights]
    predictor = Predictor(
        sources,
        device=pick_device(device),
        precision=precision,
        overlap=overlap,
        blend=blend,
        mirror=mirror,
        batch_size=batch_size,
        interpolation="nearest" if nearest else "linear",
        largest_component=largest_component,
        smallest_component=smallest_component,
        zoom_slices=slice_zoom,
    )
    failed = predict_files(predictor, inputs, out, resume=resume, overwrite=overwrite, save_probabilities=probabilities)
    if failed:
        cases = json.loads((out / "predictions.json").read_text(encoding="utf-8"))["cases"]
        check_failed([case["error"] for case in cases if case["status"] == "failed"], len(cases), "cases failed")
    typer.echo(f"label maps in {out}")


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option("--data", help="Folder of reference label maps, or one file; to classify: the data set.")],
    predictions: Annotated[
        Path | None, typer.Argument(help="Folder of predicted label maps, or one file; to classify: predictions.csv, or its folder.")
    ] = None,
    task: Task = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Of a classifier, in place of a predictions.csv.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of a classification data set: train, val or test.")] = None,
    device: options.Device = "auto",
    batch_size: options.OptionalBatchSize = None,
    out: options.Out = Path("evaluation"),
    labels: Annotated[Path | None, typer.Option("--labels", help="Names of the ids: labels.json, dataset.json or weights.")] = None,
    convention: Annotated[str, typer.Option("--convention", help="nnunet, monai, brats, paper:segformer3d or paper:transunet.")] = "nnunet",
    nsd_tolerance: Annotated[float, typer.Option("--nsd-tolerance", help="Of the normalised surface Dice, mm.")] = 1.0,
    images: Annotated[Path | None, typer.Option("--images", help="Folder of the images, for the pictures.")] = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw every case, and write report.html.")] = True,
    missing_as_empty: Annotated[bool, typer.Option("--missing-as-empty", help="A missing prediction counts as an empty one.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are not of an earlier evaluation, too.")] = False,
) -> None:
    """Compare predictions with references: Dice, HD95, NSD, volumes, a case and structure; of a classifier the AUCs."""
    if predictions is not None and task != "segmentation" and (predictions / "predictions.csv").is_file():
        predictions = predictions / "predictions.csv"
    if task == "classification" or weights is not None or (predictions is not None and predictions.suffix == ".csv"):
        from vsuite.medical.classification import cli as commands

        given = {"labels": labels, "images": images, "missing-as-empty": missing_as_empty, "no-pictures": not pictures}
        commands.refuse("classification", given | {"convention": convention != "nnunet", "nsd-tolerance": nsd_tolerance != 1})
        commands.evaluate(predictions, weights, data, out, split=split, device=device, batch_size=batch_size)
        return
    if split is not None or batch_size is not None:
        raise InputError(f"--{'split' if split is not None else 'batch-size'}: only with --task classification")
    if predictions is None:
        raise InputError("give the folder of predicted label maps; or --weights, to evaluate a classifier")
    from vsuite.medical.evaluation import evaluate_folder
    from vsuite.medical.evaluation_files import earlier_cases, print_evaluation

    replaced = earlier_cases(out) is not None
    found = evaluate_folder(
        predictions,
        data,
        labels=labels,
        convention=convention,
        nsd_tolerance_mm=nsd_tolerance,
        out=out,
        pictures=pictures,
        images=images,
        missing_as_empty=missing_as_empty,
        overwrite=overwrite,
    )
    print_evaluation(found)
    where = f"files in {out}" + (", in place of an earlier evaluation" if replaced else "")
    typer.echo(where + (f", report: {out / 'report.html'}" if pictures else ""))
    if found.failed:
        raise InputError(f"{len(found.failed)} of {len(found.cases)} cases could not be compared; first: {found.failed[0].error}")


@app.command()
def export(
    weights: Annotated[str, typer.Option("--weights", help="File of weights, a run folder, or the name of shipped ones.")],
    out: Annotated[Path, typer.Option("--out", help="A folder for bundle, else a file: .onnx, .ts, .bin or .pth.")],
    form: Annotated[
        Literal["bundle", "onnx", "torchscript", "published"],
        typer.Option("--format", help="bundle (MONAI), onnx, torchscript, or published (the authors' layout)."),
    ] = "bundle",
    task: Task = None,
    plan: PlanOption = None,
    overlap: Overlap = 0.5,
    blend: Blend = "gaussian",
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="ONNX: leave the size of the input free.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Export as MONAI bundle, ONNX, TorchScript or the authors' layout, with a contract that says what goes in and comes out."""
    from vsuite.medical import export as exports
    from vsuite.medical.classification import cli as commands

    for path in () if form == "bundle" else (out, exports.contract_path(out)):
        refuse_existing(path, overwrite=overwrite)
    if plan is None and commands.task_of(task, [weights]) != "segmentation":
        commands.export(weights, out, form, overwrite=overwrite)
        return
    source = _with_plan(weights, plan)
    if form == "bundle":
        written: Any = exports.export_bundle(source, out, overlap=overlap, blend=blend, overwrite=overwrite)
    elif form == "onnx":
        written = exports.export_onnx(source, out, dynamic_size=dynamic_size, overlap=overlap, blend=blend)
    elif form == "torchscript":
        written = exports.export_torchscript(source, out, overlap=overlap, blend=blend)
    else:
        written = exports.export_published(source, out)
    typer.echo(str(written))


@app.command()
def slices(
    data: Annotated[Path, typer.Option("--data", help="Decathlon or nnU-Net folder, or a folder of NIfTI files or DICOM series.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    window: Annotated[tuple[float, float] | None, typer.Option("--window", metavar="CENTRE WIDTH", help="What is black to white.")] = None,
    fraction: Annotated[float, typer.Option("--fraction", help="Share of the volumes that validates.")] = 0.2,
    labelled: Annotated[float, typer.Option("--labelled", help="Also write labels_few.csv with this share of the training volumes.")] = 1.0,
    seed: options.Seed = 0,
) -> None:
    """Cut volumes into 16-bit pictures along Z; labelled ones with a table of the structures that each slice shows."""
    from vsuite.medical.classification.cli import cut_slices

    cut_slices(data, out, window=window, fraction=fraction, labelled=labelled, seed=seed)


@app.command()
def demo(out: options.Out = Path("demo"), seed: options.Seed = 0, overwrite: Overwrite = False) -> None:
    """Make a small data set, train on it for about a minute, predict, evaluate and report."""
    from vsuite.medical.demo import run_demo

    run_demo(out, seed=seed, overwrite=overwrite)


def _with_plan(weights: str, plan: str | None) -> Any:
    """The weights as they are, or with the plan that they lack."""
    from vsuite.core.weights import find_weights
    from vsuite.medical.inference.predictor import load_model_and_plan
    from vsuite.medical.recipes import find_plan

    return find_weights(weights) if plan is None else load_model_and_plan(weights, find_plan(plan))


def main() -> None:
    """Entry point of `vsuite-medical`."""
    run(app)


if __name__ == "__main__":
    main()
