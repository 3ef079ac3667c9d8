"""The command line `vsuite-pointcloud`: train, predict, evaluate, view, inspect, simulate, export, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vsuite.core.batch import refuse_existing
from vsuite.core.cli import options
from vsuite.core.cli.app import new_app, run
from vsuite.core.errors import InputError

if TYPE_CHECKING:
    from vsuite.pointcloud.data.clouds import Invalid, Reading

app = new_app("vsuite-pointcloud", "Point clouds: boxes in lidar sweeps, classes and parts of shapes, and a viewer.")

Weights = Annotated[
    str | None, typer.Option("--weights", help="File of weights, a run folder, or a name [default: those of the package for the task].")
]
Inputs = Annotated[list[str], typer.Argument(metavar="INPUTS...", help='Files, folders, or "patterns/*.bin".')]
Columns = Annotated[
    str | None, typer.Option("--columns", help='Names of the columns of files that do not name them, such as "x,y,z,intensity".')
]

Scale = Annotated[float, typer.Option("--scale", metavar="FACTOR", help="Factor for the coordinates: 0.001 for millimetres.")]
DropInvalid = Annotated[bool, typer.Option("--drop-invalid", help="Leave out points with NaN or infinite coordinates.")]
RemoveClose = Annotated[
    float | None,
    typer.Option(
        "--remove-close",
        metavar="METRES",
        min=0,
        help="Leave out points on the sensor's own vehicle: nearer in x and in y [default: 1 for nuScenes, as its devkit; else 0].",
    ),
]


@app.command()
def train(
    data: Annotated[Path | None, typer.Option("--data", help="Folder of a data set: sweeps with boxes, or shapes.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="flatformer_streets (default), centerpoint_streets, gpsformer_solids, ..., or a YAML file."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [default: runs/FOLDER-RECIPE].")] = None,
    config: options.Config = None,
    model: options.OptionalModel = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    precision: options.OptionalPrecision = None,
    batch_size: options.OptionalBatchSize = None,
    seed: options.OptionalSeed = None,
    resume: options.Resume = False,
    overrides: options.Set = [],  # noqa: B006
) -> None:
    """Train a detector on sweeps, or a classifier or part segmenter on shapes, by a recipe."""
    from vsuite.pointcloud.training import resolve_settings
    from vsuite.pointcloud.training import train as run_training

    chosen = {"training.precision": precision, "training.batch_size": batch_size, "training.seed": seed}
    settings = resolve_settings(
        data=data,
        recipe=recipe,
        config=options.settings_of_run(out, config, recipe, resume=resume),
        overrides=options.overrides_of(chosen, overrides),
        model=model,
        weights=weights,
    )
    out = out or Path("runs") / f"{Path(settings.data).resolve().name}-{settings.name}"
    result = run_training(settings, out, device=device, resume=resume)
    found = ", ".join(f"{name} {value:.4g}" for name, value in result.best_metrics.items()) or "the newest weights"
    options.say_trained(result, found, "vsuite-pointcloud predict --weights {weights} FILE")


@app.command()
def predict(
    inputs: Inputs,
    weights: Weights = None,
    task: Annotated[
        Literal["detect", "classify", "parts"] | None, typer.Option("--task", help="What the weights are for [default: as they say].")
    ] = None,
    out: options.Out = Path("predictions"),
    formats: Annotated[str, typer.Option("--format", help="Forms of the boxes, with commas between: json, kitti, nuscenes.")] = "json",
    threshold: Annotated[float, typer.Option("--threshold", min=0, max=1, help="Lowest score of a box.")] = 0.2,
    turn: Annotated[
        float,
        typer.Option(
            "--turn", help="Degrees to turn sweeps by first, where x is not ahead: -90 for nuScenes (0 for models trained on nuScenes)."
        ),
    ] = 0.0,
    remove_close: RemoveClose = None,
    category: Annotated[str | None, typer.Option("--category", help="What the shapes are, for their parts.")] = None,
    columns: Columns = None,
    scale: Scale = 1.0,
    drop_invalid: DropInvalid = False,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw each sweep from above with its boxes.")] = True,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="PAGE.html", help="Write a page that shows sweeps and boxes in 3D.")
    ] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
) -> None:
    """Find boxes in sweeps, name shapes, or label their parts."""
    from vsuite.pointcloud.batch import Outputs, predict_files
    from vsuite.pointcloud.inference import Predictor

    predictor = Predictor(weights, task=task, device=device, precision=precision)
    outputs = Outputs(out, _listed(formats), threshold, turn, remove_close, pictures=pictures, page=page, overwrite=overwrite)
    done = predict_files(predictor, inputs, outputs, reading=_reading(columns, scale, drop_invalid), category=category)
    options.say_predicted(done, out)
    options.say_failed(done.failed, done.total, "files failed")


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option("--data", help="Folder of a data set with labels.")],
    predictions: Annotated[Path | None, typer.Argument(help="A boxes.json (or a folder of KITTI results), in place of --weights.")] = None,
    weights: Weights = None,
    task: Annotated[Literal["detect", "classify", "parts"] | None, typer.Option("--task", help="[default: as the weights say]")] = None,
    split: Annotated[str | None, typer.Option("--split", help="train, val or test [default: val, else test, else everything].")] = None,
    metrics: Annotated[str, typer.Option("--metrics", help="Of boxes, with commas between: waymo, kitti, nuscenes.")] = "waymo",
    overlap: Annotated[
        list[str], typer.Option("--overlap", metavar="CLASS=IOU", help="IoU that a match needs [default: 0.7 for vehicles, else 0.5].")
    ] = [],  # noqa: B006
    classes: Annotated[
        str | None, typer.Option("--classes", help="Which count, with commas between [default: those that the model knows].")
    ] = None,
    votes: Annotated[int, typer.Option("--votes", min=1, help="Scaled copies that vote on each shape; 1 is no voting.")] = 1,
    remove_close: RemoveClose = None,
    out: options.Out = Path("evaluation"),
    device: options.Device = "auto",
) -> None:
    """Compare a model, or predictions, with labels; every figure is printed with its definition."""
    from vsuite.pointcloud import evaluation

    overlaps = {name: float(value) for name, value in options.parse_set(overlap).items()} or None
    counted: dict[str, Any] = {"split": split, "metrics": _listed(metrics), "overlaps": overlaps, "classes": _names(classes)}
    if predictions is not None and weights is not None:
        raise InputError("give either --weights or a file of predictions")
    if predictions is not None and remove_close is not None:
        raise InputError("--remove-close is for what a model is given; the predictions are there already")
    if predictions is not None:
        found = evaluation.judge_predictions(predictions, data, **counted)
    else:
        found = evaluation.judge_model(weights, data, task=task, votes=votes, remove_close=remove_close, device=device, **counted)
    evaluation.print_evaluation(found, {"band": "all"})
    evaluation.write_evaluation(found, out, data=str(data), weights=weights, votes=votes)
    typer.echo(f"files in {out}")
    options.say_failed(list(found.failed), found.frames + len(found.failed), "frames cannot be used and do not count")


@app.command()
def view(
    inputs: Inputs,
    predictions: Annotated[Path | None, typer.Option("--predictions", help="boxes.json of predict, or a folder of KITTI results.")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="True boxes: a .json, or a folder of NAME.txt.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write a page (.html) or a picture (.png) instead of serving one.")] = None,
    colour: Annotated[
        str, typer.Option("--colour", help="height, label, prediction, error, rgb, or a column such as intensity.")
    ] = "height",
    threshold: Annotated[float, typer.Option("--threshold", min=0, max=1, help="Lowest score of a box at first.")] = 0.2,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of the page on this machine.")] = 8080,
    columns: Columns = None,
    scale: Scale = 1.0,
    drop_invalid: DropInvalid = False,
) -> None:
    """Look at point clouds, boxes and labels in the browser, on a page that stands alone, or as a picture."""
    from vsuite.pointcloud.show import show

    reading = _reading(columns, scale, drop_invalid)
    show(inputs, predictions=predictions, labels=labels, save=save, colour=colour, threshold=threshold, port=port, reading=reading)


@app.command("inspect")
def inspect_files(inputs: Inputs, columns: Columns = None, scale: Scale = 1.0, drop_invalid: DropInvalid = False) -> None:
    """Say what is in files: points, bounds, columns, density, the likely unit and upward axis."""
    from vsuite.pointcloud.batch import find_clouds
    from vsuite.pointcloud.data.inspection import inspect_cloud

    paths, failed = find_clouds(inputs)
    total = len(paths) + len(failed)
    reading = _reading(columns, scale, drop_invalid, otherwise="keep")
    for path in paths:
        try:
            facts = inspect_cloud(reading.read(path))
        except InputError as error:
            failed.append(str(error))
            continue
        typer.echo("\n  ".join([str(path), *facts.lines()]))
    options.say_failed(failed, total, "files cannot be read")


@app.command()
def simulate(
    out: Annotated[Path, typer.Option("--out", help="Folder of the data set; an unfinished one is continued.")],
    what: Annotated[
        Literal["streets", "shapes"], typer.Option("--what", help="Lidar sweeps of streets, or solids to classify.")
    ] = "streets",
    count: Annotated[int, typer.Option("--count", min=1, help="Sweeps or shapes.")] = 100,
    profile: Annotated[str, typer.Option("--profile", help="Sensor: hdl64, hdl64_front, hdl32 or vlp16.")] = "hdl32",
    split: Annotated[float, typer.Option("--split", min=0, max=1, help="Share of the frames to validate on.")] = 0.2,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    seed: options.Seed = 0,
) -> None:
    """Make labelled data: lidar sweeps of random streets, or clouds of random solids."""
    if what == "shapes":
        from vsuite.pointcloud.simulate.solids import write_solid_dataset

        write_solid_dataset(out, count, seed=seed, split=split)
    else:
        from vsuite.pointcloud.simulate.frames import write_frames

        write_frames(out, count, seed=seed, profile=profile, workers=workers, split=split)
    recipe = {"streets": "flatformer_streets", "shapes": "gpsformer_solids"}[what]
    typer.echo(f"{count} {what} in {out}")
    typer.echo(f"next: vsuite-pointcloud train --data {out} --recipe {recipe}")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="File to write: .onnx; or .pth or .safetensors with --published.")],
    weights: Weights = None,
    published: Annotated[bool, typer.Option("--published", help="The authors' layout, for other programs, in place of ONNX.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Export as ONNX, checked with onnxruntime, or in the authors' layout."""
    from vsuite.pointcloud import export as exports

    refuse_existing(out, overwrite=overwrite)
    source = weights or "flatformer_streets"  # the shipped detector that ONNX has a form for
    typer.echo(exports.export_published(source, out) if published else exports.export_onnx(source, out))


@app.command()
def demo(
    out: options.Out = Path("demo"),
    detector: Annotated[str | None, typer.Option("--detector", help="Weights of a detector [default: those of the package].")] = None,
    classifier: Annotated[str | None, typer.Option("--classifier", help="Weights of a classifier [default: those of the package].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
    seed: options.Seed = 7,
) -> None:
    """Simulate streets and solids, show them, and try models on them: pictures, tables and a 3D page."""
    from vsuite.pointcloud.demo import run_demo

    run_demo(out, detector=detector, classifier=classifier, overwrite=overwrite, seed=seed)


def _reading(columns: str | None, scale: float, drop_invalid: bool, otherwise: Invalid = "refuse") -> Reading:
    from vsuite.pointcloud.data.clouds import Reading

    return Reading(_names(columns), scale, "drop" if drop_invalid else otherwise)


def _names(columns: str | None) -> list[str] | None:
    return None if columns is None else list(_listed(columns))


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(","))


def main() -> None:
    """Entry point of `vsuite-pointcloud`."""
    run(app)


if __name__ == "__main__":
    main()
