"""The commands `vsuite models`, `info`, `bench` and `doctor`; those for images come from `vsuite.core.cli.images`."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsuite.core.cli import images, options
from vsuite.core.cli.app import new_app
from vsuite.core.errors import InputError
from vsuite.core.registry import ModelInfo, PublishedResult, list_models, model_info
from vsuite.core.terminal import console, new_table

if TYPE_CHECKING:
    from vsuite.core.bench import Conditions, Subject

app = new_app("vsuite-core", "vsuite: published vision systems for volumes, point clouds, skeletons and images.")

for _command in (images.train, images.predict, images.evaluate):
    app.command()(_command)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help='Wildcard on the name, such as "swin_*".')] = "*",
    system: Annotated[str | None, typer.Option("--system", help="Only models of this system.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only models for this task.")] = None,
    with_weights: Annotated[bool, typer.Option("--with-weights", help="Only models with weights in an installed package.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the models with their sizes and first published result."""
    infos = [model_info(name) for name in list_models(pattern, system=system, task=task, with_weights=with_weights)]
    if as_json:
        typer.echo(json.dumps([facts(info) for info in infos], indent=2))
        return
    if not infos:
        raise InputError(f"no model matches {pattern!r} and these filters; `vsuite models` lists all")
    table = new_table("name", "system", "task", "params M", "published", right=("params M",))
    for info in infos:
        headline = published_text(info.published[0]) if info.published else ""
        table.add_row(info.name, info.system, info.task, millions(count(info)), headline)
    console().print(table)


@app.command()
def info(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a model.")], as_json: AsJson = False) -> None:
    """Show all that is known of one model."""
    model = model_info(name)
    if as_json:
        typer.echo(json.dumps(facts(model), indent=2))
        return
    out = console()
    parameters = count(model)
    table = new_table("", "")
    table.show_header = False
    for key, value in (
        ("name", model.name),
        ("summary", model.summary),
        ("system", model.system),
        ("task", model.task),
        ("paper", model.paper),
        ("licence", model.licence),
        ("parameters", "unknown" if parameters is None else f"{parameters:,}"),
        ("input size", " x ".join(map(str, model.input_size)) or "not given"),
        ("weights", ", ".join(model.weights) or "none shipped by the installed packages"),
        ("checkpoint", checkpoint_text(model)),
    ):
        table.add_row(key, value)
    out.print(table)
    out.print()
    settings = new_table("option", "default")
    for key, default in model.options.items():
        settings.add_row(key, "(must be given)" if default is inspect.Parameter.empty else repr(default))
    out.print(settings)
    if model.published:
        out.print("\nResults as published by the authors, not measured here:", style="bold")
        results = new_table("data set", "metric", "value", right=("value",))
        for result in model.published:
            results.add_row(result.dataset, result.metric, f"{result.value:g} {result.unit}".strip())
        out.print(results)


@app.command()
def bench(
    names: Annotated[list[str], typer.Argument(metavar="NAMES...", help='Models; wildcards such as "swin_*" are understood.')],
    size: Annotated[str | None, typer.Option("--size", help="One input, channels first: 4x128x128x128. [default: as published]")] = None,
    batch_size: options.BatchSize = 1,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of torch on the CPU.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="Time for the repeats of one form; at least 5 are made.")] = 10.0,
    baseline: Annotated[str | None, typer.Option("--baseline", help='"plain": compare with the plain form of the model.')] = None,
    optimize: Annotated[bool, typer.Option("--optimize", help="Measure the model folded for inference as well.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure it folded and compiled as well.")] = False,
    settings: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Option of the model; may be repeated.")] = [],  # noqa: B006
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")] = None,
) -> None:
    """Measure the size, speed and memory of models."""
    from vsuite.core.bench import Conditions, compare, forms, print_results, write_results
    from vsuite.core.devices import pick_device

    if baseline not in (None, "plain"):
        raise InputError(f"--baseline {baseline!r} is not known; allowed is plain")
    chosen = [name for given in names for name in matching(given)]
    where, given_size, given_options = str(pick_device(device)), options.parse_size(size) if size else None, options.parse_set(settings)
    plan: list[tuple[list[Subject], Conditions]] = []
    for name in dict.fromkeys(chosen):
        shape, model_options = input_and_options(model_info(name), given_size, given_options)
        subjects = forms(name, model_options, plain=baseline == "plain", optimized=optimize, compiled=compiled)
        plan.append((subjects, Conditions(shape, batch_size, where, precision, threads, seconds)))
    results, failures = [], []
    with console(stderr=True).status("") as status:
        for subjects, conditions in plan:
            name = subjects[0].name
            try:
                found = compare(subjects, conditions, lambda step, name=name: status.update(f"{name}: {step}"))  # type: ignore[misc]
            except InputError as error:  # the others of a long list are still measured
                failures.append(f"{name}: {error}")
                continue
            results += [(conditions, result) for result in found]
    print_results(results)
    if json_file is not None and results:
        write_results(json_file, results)
    if failures:
        raise InputError("; ".join(failures))


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing and how to get it."""
    from vsuite.core.cli.doctor import examine, print_findings

    findings = examine()
    print_findings(findings)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def matching(pattern: str) -> list[str]:
    """The models that a name or wildcard stands for; raises `InputError` if there is none."""
    if not any(character in pattern for character in "*?["):
        return [model_info(pattern).name]
    found = list_models(pattern)
    if not found:
        raise InputError(f"no model matches {pattern!r}; `vsuite models` lists all")
    return found


def input_and_options(model: ModelInfo, size: tuple[int, ...] | None, given: dict[str, Any]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The input's size and the builder's options, with one number of channels for both."""
    shape = size or model.input_size
    if not shape:
        raise InputError(f"{model.name} has no input size of its own; give one with --size")
    if "in_channels" not in model.options:
        return shape, given
    if model.input_size and len(shape) != len(model.input_size):
        own, asked = ("x".join(map(str, sizes)) for sizes in (model.input_size, shape))
        raise InputError(f"--size {asked}: {model.name} takes sizes such as {own}, channels first")
    if size is None:
        return (given.get("in_channels", shape[0]), *shape[1:]), given
    return shape, {"in_channels": size[0], **given}


def count(model: ModelInfo) -> int | None:
    """Parameters with the default options, counted without allocating them; None where the model cannot be built so."""
    import torch

    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in model.builder().parameters())
    except Exception:  # one model that needs options, or memory, must not hide the others
        return None


def millions(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:.2f}"


def published_text(result: PublishedResult) -> str:
    return f"{result.value:g} {result.unit} {result.metric}, {result.dataset}".replace("  ", " ")


def checkpoint_text(model: ModelInfo) -> str:
    """What `load_published` does with the authors' file."""
    if model.layout is None:
        return "the authors' files cannot be loaded"
    assumed = ", ".join(f"{key}={value!r}" for key, value in model.layout.assumed.items())
    return "load_published reads the authors' files" + (f"; not recorded there, so assumed: {assumed}" if assumed else "")


def facts(model: ModelInfo) -> dict[str, Any]:
    """All that is known of a model, ready for JSON."""
    return {
        "name": model.name,
        "system": model.system,
        "task": model.task,
        "summary": model.summary,
        "paper": model.paper,
        "licence": model.licence,
        "parameters": count(model),
        "input_size": list(model.input_size),
        "options": {key: None if value is inspect.Parameter.empty else value for key, value in model.options.items()},
        "published": [vars(result) for result in model.published],
        "weights": {name: str(path) for name, path in model.weights.items()},
        "assumed": dict(model.layout.assumed) if model.layout else {},
    }
