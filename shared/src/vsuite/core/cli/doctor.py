"""What `vsuite doctor` looks at."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vsuite.core.terminal import console, new_table

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: "ok"; "missing": optional and not there; "weak": works, but expect trouble; "broken": must be mended.
        name: what it is.
        detail: its version, or what is wrong.
        remedy: the command that mends it.
    """

    state: Literal["ok", "missing", "weak", "broken"]
    name: str
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Looks at everything."""
    findings = [Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.prefix}")]
    for check in (_distributions, _imports, _models, _torchvision, _opencv, _devices, _tools, _room):
        findings += check()
    return findings


def print_findings(findings: list[Finding]) -> None:
    """Prints a table, then the commands, each on a line of its own so that it can be copied."""
    out = console()
    table = new_table("", "what", "found")
    for finding in findings:
        table.add_row(finding.state, finding.name, finding.detail)
    out.print(table)
    remedies = dict.fromkeys(finding.remedy for finding in findings if finding.remedy)
    if remedies:
        out.print("\nTo mend or add what is missing:", style="bold")
        for remedy in remedies:
            out.print(f"  {remedy}", soft_wrap=True)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _distributions() -> Iterator[Finding]:
    """The packages of the suite, and everything that they say they need or can use."""
    from packaging.requirements import Requirement

    suite = {found.name: found for found in importlib.metadata.distributions() if found.name and found.name.startswith("vsuite-")}
    seen = set()
    for name, found in sorted(suite.items()):
        yield Finding("ok", name, found.version)
        extras = found.metadata.get_all("Provides-Extra") or []
        for text in found.requires or []:
            need = Requirement(text)
            extra = next(
                (e for e in extras if need.marker and not need.marker.evaluate({"extra": ""}) and need.marker.evaluate({"extra": e})), None
            )
            applies = need.marker is None or extra is not None or need.marker.evaluate({"extra": ""})
            if not applies or need.name.startswith("vsuite") or need.name in seen:
                continue
            seen.add(need.name)
            yield _requirement(name, extra, need.name, need.specifier)


def _requirement(distribution: str, extra: str | None, name: str, allowed: SpecifierSet) -> Finding:
    version = _version(name)
    used_by = f"{distribution}[{extra}]" if extra else distribution
    if version is not None and allowed.contains(version, prereleases=True):  # vendors' images hold torch 2.9.0a0 and the like
        return Finding("ok", name, version)
    detail = "not installed" if version is None else f"{version}, but {allowed} is needed"
    if extra:
        return Finding("missing", name, f"{detail}; for {used_by}", f'pip install "{used_by}"')
    return Finding("broken", name, f"{detail}; required by {used_by}", f'pip install "{name}{allowed}"')


def _imports() -> Iterator[Finding]:
    """Installed is not yet working: these are the libraries that fail to load where a system library is missing."""
    for module, remedy in (("torch", "pip install --force-reinstall torch"), ("mmengine", "apt-get install -y libgl1 libglib2.0-0")):
        error = _import_error(module)
        if error:
            yield Finding("broken", f"import {module}", error, remedy)


def _import_error(module: str) -> str:
    """Why a module cannot be imported; empty if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # broken binaries raise all kinds
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def _models() -> Iterator[Finding]:
    from vsuite.core.registry import list_models

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same complaints as below, less precise
        for entry in importlib.metadata.entry_points(group="vsuite.models"):
            error = _import_error(entry.value.split(":")[0])
            if error:
                yield Finding("broken", f"models of {entry.name}", error)
        number = len(list_models())
    yield Finding("ok", "models", f"{number} registered")


def _torchvision() -> Iterator[Finding]:
    """vsuite does not need it, but libraries that it uses import it where it is there, and break with it."""
    if importlib.util.find_spec("torchvision") is None:
        return
    error = _import_error("torchvision")
    if error:
        yield Finding("broken", "torchvision", f"does not fit torch: {error}", "pip uninstall -y torchvision")
    else:
        yield Finding("ok", "torchvision", f"{_version('torchvision')} (not needed)")


def _opencv() -> Iterator[Finding]:
    if _version("opencv-python") and _version("opencv-python-headless"):
        detail = "opencv-python and opencv-python-headless overwrite each other's files"
        remedy = "pip uninstall -y opencv-python-headless && pip install --force-reinstall --no-deps opencv-python"
        yield Finding("weak", "opencv", detail, remedy)


def _devices() -> Iterator[Finding]:
    if _import_error("torch"):
        return
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("ok", "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads, {capability}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Finding("ok", f"cuda:{index}", f"{facts.name}, {facts.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}")
    elif torch.version.cuda:
        yield Finding("missing", "cuda", f"torch is built for CUDA {torch.version.cuda}, but no device is visible", "nvidia-smi")
    else:
        command = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
        remedy = command if shutil.which("nvidia-smi") else ""
        yield Finding("missing", "cuda", f"torch {torch.__version__} is built without CUDA", remedy)


def _tools() -> Iterator[Finding]:
    compiler = next((found for name in (os.environ.get("CXX", ""), "g++", "clang++") if name and (found := shutil.which(name))), None)
    if compiler:
        yield Finding("ok", "C++ compiler", compiler)
    else:
        yield Finding("missing", "C++ compiler", "none found; torch.compile on the CPU needs one", "apt-get install -y g++")
    bundled = "the one in imageio-ffmpeg" if importlib.util.find_spec("imageio_ffmpeg") else ""
    ffmpeg = shutil.which("ffmpeg") or bundled
    if ffmpeg:
        yield Finding("ok", "ffmpeg", ffmpeg)
    else:
        yield Finding("missing", "ffmpeg", "not found; reading and writing video needs it", "pip install imageio-ffmpeg")


def _room() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding("weak" if free < 5 * GIB else "ok", "disk", f"{free / GIB:.0f} GiB free in {Path.cwd()}")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, available = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
        yield Finding("weak" if available < 2 * GIB else "ok", "memory", f"{available / GIB:.0f} of {total / GIB:.0f} GiB available")
    shared = Path("/dev/shm")
    if shared.exists() and shutil.disk_usage(shared).total < GIB:
        detail = f"{shutil.disk_usage(shared).total / 2**20:.0f} MiB in {shared}; loading data in several processes needs more"
        yield Finding("weak", "shared memory", detail, "docker run --shm-size=8g ...")
