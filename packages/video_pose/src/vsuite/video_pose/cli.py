"""The command line `vsuite-pose`: train, predict, evaluate, export, demo."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vsuite.core.batch import refuse_existing
from vsuite.core.cli import options
from vsuite.core.cli.app import new_app, run
from vsuite.core.errors import InputError

if TYPE_CHECKING:
    from vsuite.video_pose.settings import TaskName

app = new_app("vsuite-pose", "People and videos: 3D poses, actions, the next frames, spoken words.")

Inputs = Annotated[list[str], typer.Argument(metavar="INPUTS...", help='Files, folders, or "patterns/*.json".')]
OptionalTask = Annotated[
    Literal["lift", "action", "forecast", "keywords"] | None,
    typer.Option("--task", help="What the weights are for [default: as they say; lift where none are given]."),
]
TaskWeights = Annotated[
    str | None, typer.Option("--weights", help="File of weights, a run folder, or the name of shipped ones [default: those of lift].")
]


@app.command()
def train(
    data: Annotated[Path | None, typer.Option("--data", help="File or folder of a data set.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="convformer_mocap (default), another one's name, or a YAML file.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [default: runs/DATA-RECIPE].")] = None,
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
    """Train on poses, videos or recordings, by a recipe."""
    from vsuite.video_pose.training import resolve_settings
    from vsuite.video_pose.training import train as run_training

    chosen = {"training.precision": precision, "training.batch_size": batch_size, "training.seed": seed}
    settings = resolve_settings(
        data=data,
        recipe=recipe,
        config=options.settings_of_run(out, config, recipe, resume=resume),
        overrides=options.overrides_of(chosen, overrides),
        model=model,
        weights=weights,
    )
    source = Path(settings.data).resolve()
    out = out or Path("runs") / f"{source.name if source.is_dir() else source.stem}-{settings.name}"
    result = run_training(settings, out, device=device, resume=resume)
    found = ", ".join(f"{name} {value:.4g}" for name, value in result.best_metrics.items()) or "the newest weights"
    options.say_trained(result, found, "vsuite-pose predict --weights {weights} INPUT")


@app.command()
def predict(
    context: typer.Context,
    inputs: Inputs,
    task: OptionalTask = None,
    weights: TaskWeights = None,
    out: options.Out = Path("predictions"),
    overwrite: options.Overwrite = False,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="lift: the picture's size in pixels, where the file does not say.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", help="lift: the joints' order, where the file does not say: coco17, h36m17, halpe26, ...")
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", min=1, help="lift: frames a second [default: as the file or the model says].")
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="lift: forms of the poses, with commas between: npz, json, bvh.")] = "npz,json",
    render: Annotated[
        Literal["mp4", "gif"] | None, typer.Option("--render", help="lift: a film of the 2D poses beside the 3D ones.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option("--video", help="lift: the video that the 2D poses are from, to draw them over; --render mp4 with it.")
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="lift: a page for the browser that shows the 3D poses from all sides.")] = False,
    fov: Annotated[
        float | None, typer.Option("--fov", min=5, max=170, help="lift: the camera's field of view over the width, degrees.")
    ] = None,
    people: Annotated[
        int | None, typer.Option("--people", min=1, help="lift: the most, those seen most often [default: everybody].")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="lift: average with the mirrored video.")] = True,
    sort: Annotated[bool, typer.Option("--sort", help="lift: put frames that are not in order into it.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="action, keywords: how many of the likeliest to list.")] = 5,
    clips: Annotated[int, typer.Option("--clips", min=1, help="action: clips of a whole video whose probabilities are averaged.")] = 1,
    each_person: Annotated[bool, typer.Option("--each-person", help="action: everybody on their own.")] = False,
    films: Annotated[Path | None, typer.Option("--films", help="action: folder with the videos of a file of poses, for RGB.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="action: pictures of the joints and frames that were looked at.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="action, keywords: the running decision too, as frames come in.")] = False,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="forecast: how many to predict [default: as many as the model observes].")
    ] = None,
    start: Annotated[
        int | None,
        typer.Option("--start", min=0, help="forecast: first frame to observe; what follows is compared [default: the last ones]."),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
) -> None:
    """Lift 2D poses to 3D; name actions or spoken words; predict what a video shows next. The weights decide."""
    chosen, weights = _task_and_weights(task, weights)
    _refuse_others_options(context, chosen)
    if chosen == "lift":
        from vsuite.video_pose.lift.predict import Options, Predictor, predict_files

        wanted = Options(
            formats=tuple(name.strip() for name in formats.split(",")),
            render=render or ("mp4" if video else None),
            video=video,
            page=page,
            layout=layout,
            sort=sort,
            most=people,
            size=_size(size),
            fps=fps,
            flip=flip,
            field_of_view=fov,
            overwrite=overwrite,
        )
        done = predict_files(Predictor(weights, device=device, precision=precision), inputs, out, wanted)
    elif chosen == "action":
        from vsuite.video_pose.action import predict as actions

        asked = actions.Wanted(top, clips, each_person=each_person, stream=stream, explain=explain, films=films)
        named = actions.Predictor(weights, device=device, precision=precision)
        done = actions.predict_files(named, inputs, out, wanted=asked, overwrite=overwrite)
    elif chosen == "keywords":
        from vsuite.video_pose.keywords import predict as keywords

        hearing = keywords.Predictor(weights, device=device, precision=precision)
        done = keywords.predict_files(hearing, inputs, out, top=top, stream=stream, overwrite=overwrite)
    else:
        from vsuite.video_pose.forecast import predict as forecast

        seer = forecast.Predictor(weights, device=device, precision=precision)
        done = forecast.predict_files(seer, inputs, out, num_frames=frames, start=start, overwrite=overwrite)
    options.say_predicted(done, out)
    options.say_failed(done.failed, done.total)


@app.command()
def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Option("--data", help="File or folder of a data set with labels.")],
    weights: TaskWeights = None,
    task: OptionalTask = None,
    out: options.Out = Path("evaluation"),
    noise: Annotated[
        str, typer.Option("--noise", help="lift: errors added to the 2D joints (standard deviations, pixels), with commas between.")
    ] = "0,5",
    split: Annotated[
        str | None, typer.Option("--split", help="unseen or all sequences of motion capture, to lift; of other data, as they name it.")
    ] = None,
    detections: Annotated[str, typer.Option("--detections", help="lift: which 2D poses of Human3.6M.")] = "gt",
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="lift: average with the mirrored video.")] = True,
    clips: Annotated[int, typer.Option("--clips", min=1, help="action: clips of a whole video whose probabilities are averaged.")] = 1,
    films: Annotated[Path | None, typer.Option("--films", help="action: folder with the videos of a file of poses, for RGB.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="action, keywords: run frame by frame too.")] = False,
    most: Annotated[int | None, typer.Option("--most", min=1, help="forecast: clips at the most, evenly spread.")] = None,
    device: options.Device = "auto",
) -> None:
    """Compare what a model gives with labels; every figure is printed with its definition."""
    chosen, weights = _task_and_weights(task, weights)
    _refuse_others_options(context, chosen)
    if chosen == "lift":
        from vsuite.video_pose.lift.evaluate import evaluate as judge

        judge(weights, data, out, noise=_numbers(noise), split=_split(split), detections=detections, flip=flip, device=device)
    elif chosen == "action":
        from vsuite.video_pose.action.evaluate import evaluate as judge_actions

        judge_actions(weights, data, out, split=split, num_clips=clips, stream=stream, films=films, device=device)
    elif chosen == "keywords":
        from vsuite.video_pose.keywords.evaluate import evaluate as judge_keywords

        judge_keywords(weights, data, out, split=split or "test", stream=stream, device=device)
    else:
        from vsuite.video_pose.forecast.evaluate import evaluate as judge_forecasts

        judge_forecasts(weights, data, out, split=split, most=most, device=device)
    typer.echo(f"files in {out}")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="File to write: .onnx.")],
    weights: TaskWeights = None,
    task: OptionalTask = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Export as ONNX, checked with onnxruntime."""
    chosen, weights = _task_and_weights(task, weights)
    refuse_existing(out, overwrite=overwrite)
    typer.echo(importlib.import_module(f"vsuite.video_pose.{chosen}.export").export_onnx(weights, out))


@app.command()
def demo(
    out: options.Out = Path("demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
    seed: options.Seed = 7,
) -> None:
    """Make somebody walk, film them, lift the 2D poses to 3D, and show and measure what comes out."""
    from vsuite.video_pose.demo import run_demo

    run_demo(out, overwrite=overwrite, seed=seed)


def _task_and_weights(task: TaskName | None, weights: str | None) -> tuple[TaskName, str]:
    """What is to be done, and with which weights; only lifting has shipped ones."""
    from vsuite.video_pose.lift.predict import SHIPPED
    from vsuite.video_pose.notes import task_of

    if weights is None:
        if task not in (None, "lift"):
            raise InputError(f"--weights are needed for the task {task!r}; the package ships those of lift alone")
        weights = SHIPPED
    found = task_of(weights)
    if task not in (None, found):
        raise InputError(f"{weights}: is for the task {found!r}, not {task!r}")
    return found, weights


def _refuse_others_options(context: typer.Context, task: TaskName) -> None:
    """Raises `InputError` for an option of other tasks, which would do nothing: its help begins with the tasks that it is for."""
    from vsuite.video_pose.training import MODEL_TASKS

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        named = (getattr(parameter, "help", None) or "").partition(": ")[0]
        tasks = set(named.split(", "))
        if tasks <= set(MODEL_TASKS) and task not in tasks and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"{parameter.opts[0]} is for {named}; these weights are for {task}")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--size {text!r} is not of the form 1920x1080: width and height in pixels")
    return int(parts[0]), int(parts[1])


def _split(name: str | None) -> Literal["unseen", "all"]:
    if name in (None, "unseen"):
        return "unseen"
    if name == "all":
        return "all"
    raise InputError(f"--split {name!r}: poses have unseen (sequences that the model has not learnt from) and all")


def _numbers(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{text!r} is no list of numbers with commas between") from error
    if any(not 0 <= value < 1e6 for value in values):
        raise InputError(f"{text!r}: numbers must be 0 or more")
    return values


def main() -> None:
    """Entry point of `vsuite-pose`."""
    run(app)


if __name__ == "__main__":
    main()
