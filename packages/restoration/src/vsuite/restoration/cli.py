"""The command line `vsuite-restore`: train, predict, evaluate, export, bench, demo."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from vsuite.core.batch import check_failed, refuse_existing
from vsuite.core.cli import options
from vsuite.core.cli.app import new_app, run
from vsuite.core.errors import InputError

LISTED = 20  # results of a batch that are named

app = new_app("vsuite-restoration", "Image super-resolution and restoration: from any picture to a better one.")


@app.command()
def train(
    data: Annotated[list[Path] | None, typer.Option("--data", help="Folder of high-resolution pictures; may be repeated.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="drct_lite (default), drct_scratch, drct_finetune, real_drct_mse, ..., or a YAML file."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [default: runs/FOLDER-RECIPE].")] = None,
    config: options.Config = None,
    model: options.OptionalModel = None,
    weights: options.Weights = None,
    validation_data: Annotated[
        str | None, typer.Option("--validation-data", help="Folder of other pictures to validate on; else some are held out.")
    ] = None,
    device: options.Device = "auto",
    precision: options.OptionalPrecision = None,
    batch_size: options.OptionalBatchSize = None,
    seed: options.OptionalSeed = None,
    resume: options.Resume = False,
    overrides: options.Set = [],  # noqa: B006
) -> None:
    """Train on folders of pictures, by a recipe."""
    from vsuite.restoration.training import resolve_settings
    from vsuite.restoration.training import train as run_training

    chosen = {"training.precision": precision, "training.batch_size": batch_size, "training.seed": seed}
    settings = resolve_settings(
        data=data or None,
        recipe=recipe,
        config=options.settings_of_run(out, config, recipe, resume=resume),
        overrides=options.overrides_of(chosen, overrides),
        model=model,
        weights=weights,
        validation_data=validation_data,
    )
    out = out or Path("runs") / f"{Path(settings.data[0]).resolve().name}-{settings.name}"
    result = run_training(settings, out, device=device, resume=resume)
    found = ", ".join(f"{name} {value:.4f}" for name, value in result.best_metrics.items()) or "the newest weights"
    options.say_trained(result, found, "vsuite-restore predict --weights {weights} PICTURE.png")


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option("--data", help="Folder of the original, high-resolution pictures.")],
    restored: Annotated[
        Path | None, typer.Argument(help="Folder of restored pictures; without it, low resolution is made of the originals and restored.")
    ] = None,
    scale: Annotated[int | None, typer.Option("--scale", min=1, help="Of the restoration; known where --weights are given.")] = None,
    weights: options.Weights = None,
    low: Annotated[Path | None, typer.Option("--low", help="Folder of stored low resolution, instead of made.")] = None,
    resize: Annotated[Literal["A", "B"], typer.Option("--resize", help="Convention of the bicubic resize that makes it.")] = "A",
    crop: Annotated[int | None, typer.Option("--crop", min=0, help="Pixels left out along each side [default: the scale].")] = None,
    channels: Annotated[Literal["y", "rgb", "both"], typer.Option("--channels", help="What is measured.")] = "both",
    round_y: Annotated[bool, typer.Option("--round-y", help="Round Y first, as the classic MATLAB scripts do.")] = False,
    baselines: Annotated[bool, typer.Option("--baselines/--no-baselines", help="Compare with bicubic and Lanczos.")] = True,
    device: options.Device = "auto",
    out: options.Out = Path("evaluation"),
) -> None:
    """PSNR and SSIM, with the conventions of every figure: of a folder of restored pictures, or of a model."""
    from vsuite.restoration import evaluation as evaluations

    if restored is not None and (weights is not None or low is not None):
        raise InputError("give either a folder of restored pictures, or --weights (and --low)")
    if restored is not None and scale is None:
        raise InputError("--scale: say how much the pictures were enlarged; it decides the crop")
    methods = {}
    if restored is None:
        label, method, scale = evaluations.model_method(weights, scale, device)
        methods = {name: evaluations.resize_method(name, scale) for name in ("bicubic", "lanczos") if baselines} | {label: method}
    assert scale is not None
    conventions = evaluations.Conventions(scale, scale if crop is None else crop, channels, round_y)
    if restored is not None:
        found = evaluations.evaluate_folder(restored, data, conventions)
    else:
        found = evaluations.evaluate_methods(data, methods, conventions, low=low, resize=resize, progress=_show)
    evaluations.write_evaluation(found, out)
    evaluations.print_evaluation(found)
    typer.echo(f"files in {out}")
    if found.failed:
        raise InputError(f"{len(found.failed)} pictures could not be compared; first: {found.failed[0]}")


def _show(name: str) -> None:
    typer.echo(f"restoring {name}", err=True)


@app.command()
def predict(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUTS...", help='Pictures, videos, folders, or "patterns/*.png".')],
    weights: options.Weights = None,
    out: options.Out = Path("restored"),
    scale: Annotated[int | None, typer.Option("--scale", min=1, help="Of the model: 2 or 4 of those shipped [default: 4].")] = None,
    outscale: Annotated[float | None, typer.Option("--outscale", help="Final factor, such as 2.5; by resampling.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Final width in pixels; alone it keeps the shape.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Final height in pixels.")] = None,
    resample: Annotated[Literal["lanczos", "bicubic"], typer.Option("--resample", help="How the final size is made.")] = "lanczos",
    ext: Annotated[
        str | None, typer.Option("--ext", help="Format of the results: png, jpg, webp, tif, bmp [default: as the input].")
    ] = None,
    suffix: Annotated[str | None, typer.Option("--suffix", help="Behind the names of the results [default: _x4 for scale 4].")] = None,
    quality: Annotated[int, typer.Option("--quality", min=1, max=100, help="Of JPEG and WebP.")] = 95,
    strip: Annotated[bool, typer.Option("--strip", help="Drop EXIF, XMP and colour profile.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave results that are there, and do the others.")] = False,
    overwrite: options.Overwrite = False,
    part: Annotated[
        str, typer.Option("--part", metavar="N/M", help="The share of the files to do: 1/2 on one GPU, 2/2 on another, at the same time.")
    ] = "1/1",
    device: options.Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16"], typer.Option("--precision", help="auto is fp16 on a GPU, fp32 on a CPU.")
    ] = "auto",
    tile: Annotated[int | None, typer.Option("--tile", min=16, help="Side of the tiles in pixels [default: what memory allows].")] = None,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="Context around each tile in pixels.")] = 32,
    wrap: Annotated[bool, typer.Option("--wrap", help="For textures: opposite sides touch.")] = False,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Average over 8 flips and turns; 8 times as slow.")] = False,
    blend_with: Annotated[str | None, typer.Option("--blend-with", help="Weights of the same model to interpolate with.")] = None,
    blend: Annotated[float, typer.Option("--blend", min=0, max=1, help="Share of those.")] = 0.5,
    compare: Annotated[Path | None, typer.Option("--compare", metavar="PAGE.html", help="Write a page with before/after sliders.")] = None,
) -> None:
    """Enlarge pictures and videos; what comes out keeps format, depth, transparency and metadata."""
    from vsuite.restoration.batch import Outputs, restore_files
    from vsuite.restoration.inference import FinalSize, Restorer

    if skip_existing and overwrite:
        raise InputError("give either --skip-existing or --overwrite")
    if compare is not None and compare.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--compare {compare}: the page's name must end in .html")
    if not (numbers := re.fullmatch(r"(\d+)/(\d+)", part)):
        raise InputError(f"--part {part}: is not like 1/2, the first of two parts")
    size = FinalSize(outscale, width, height, resample)
    if weights is None and scale is None and outscale is not None and outscale <= 2:
        scale = 2
    restorer = Restorer(
        weights,
        scale=scale,
        device=device,
        precision=precision,
        tile=tile,
        overlap=overlap,
        wrap=wrap,
        ensemble=ensemble,
        blend_with=blend_with,
        blend=blend,
    )
    typer.echo(restorer.describe(), err=True)
    named = suffix if suffix is not None else f"_x{outscale or restorer.scale:g}" if width is None and height is None else "_resized"
    existing: Literal["refuse", "skip", "overwrite"] = "skip" if skip_existing else "overwrite" if overwrite else "refuse"
    outputs = Outputs(named, ext, strip, quality, existing)
    done = restore_files(restorer, inputs, out, size=size, outputs=outputs, part=(int(numbers[1]), int(numbers[2])))
    for job in done.written[:LISTED]:
        typer.echo(f"{job.source} -> {job.output}")
    if len(done.written) > LISTED:
        typer.echo(f"and {len(done.written) - LISTED} more")
    skipped = f", {len(done.skipped)} were there" if done.skipped else ""
    if len(done.written) != 1 or skipped:
        typer.echo(f"{len(done.written)} written{skipped}")
    if compare is not None:
        _write_comparison(compare, [(job.source, job.output) for job in [*done.written, *done.skipped]])
    total = len(done.failed) + len(done.written) + len(done.skipped)
    check_failed(done.failed, total, "files failed")


def _write_comparison(page: Path, files: list[tuple[Path, Path]]) -> None:
    from vsuite.restoration.compare import pair_of_files, write_page
    from vsuite.restoration.video import SUFFIXES

    write_page(page, (pair_of_files(before, after) for before, after in files if before.suffix.lower() not in SUFFIXES))
    typer.echo(f"comparison: {page}")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="File to write: .onnx; or .pth or .safetensors with --published.")],
    weights: options.Weights = None,
    scale: Annotated[int | None, typer.Option("--scale", min=1, help="Of the model: 2 or 4 of those shipped [default: 4].")] = None,
    published: Annotated[bool, typer.Option("--published", help="The authors' layout, for other programs, in place of ONNX.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Export as ONNX of any size, checked with onnxruntime, or in the authors' layout."""
    from vsuite.restoration import export as exports

    refuse_existing(out, overwrite=overwrite)
    if published:
        exports.export_published(weights, out, scale=scale)
        typer.echo(f"{out}: in the authors' layout")
        return
    difference = exports.export_onnx(weights, out, scale=scale)
    typer.echo(f"{out}: differs from the model by at most {difference:.1e} (values from 0 to 1)")


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODELS...]", help="[default: drct_x4]")] = None,
    size: Annotated[list[str], typer.Option("--size", help="Input, channels first; may be repeated.")] = ["3x64x64", "3x96x96"],  # noqa: B006
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of torch on the CPU.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="Time for the repeats of one form; at least 5 are made.")] = 10.0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")] = None,
) -> None:
    """Measure models beside the plain form of the published structure: speed, memory, and that both give the same."""
    from vsuite.core.bench import Conditions, compare, forms, print_results, write_results
    from vsuite.core.cli.commands import input_and_options
    from vsuite.core.devices import pick_device
    from vsuite.core.registry import model_info

    where, results = str(pick_device(device)), []
    for name in names or ["drct_x4"]:
        for shape in size:
            given, chosen = input_and_options(model_info(name), options.parse_size(shape), {})
            conditions = Conditions(given, 1, where, precision, threads, seconds)
            results += [(conditions, result) for result in compare(forms(name, chosen, plain=True, optimized=True), conditions)]
    print_results(results)
    if json_file is not None:
        write_results(json_file, results)


@app.command()
def demo(
    out: options.Out = Path("demo"),
    scale: Annotated[int, typer.Option("--scale", help="2 or 4.")] = 4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Draw pictures, make them small, restore them, and compare with bicubic and Lanczos; under a minute."""
    from vsuite.restoration.demo import run_demo

    run_demo(out, scale=scale, overwrite=overwrite)


def main() -> None:
    """Entry point of `vsuite-restore`."""
    run(app)


if __name__ == "__main__":
    main()
