"""What may import what.

    domain -> core.{images, training, evaluation, bench} -> core.weights -> core.models -> core.{nn, registry, errors}

Core knows no domain, domains do not know each other, a `cli` stands on top of its package.
"""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "shared/src", *sorted(ROOT.glob("packages/*/src"))]
FORBIDDEN = {"torchvision", "timm", "einops", "mmcv"}
# Modules that subclass a heavy library's classes; themselves imported only where they are used.
OPEN_HEAVY = {
    ("vsuite.core.training.runner", "mmengine"),
    ("vsuite.core.training.loop", "mmengine"),
    ("vsuite.medical.bundle_components", "monai"),
    ("vsuite.medical.classification.bundle_components", "monai"),
    ("vsuite.restoration.adversary", "mmengine"),
}
HEAVY = {"mmengine", "monai", "matplotlib", "cv2", "onnx", "onnxscript", "onnxruntime", "open3d", "ignite"}

# The floors of the core, from the ground up; a module may import from its own floor and those below.
FLOORS = (
    {"batch", "errors", "files", "terminal", "devices", "registry", "nn", "onnx", "optimize", "unpickling", "unpickling_names"},
    {"models"},
    {"weights"},
    {"images", "training", "evaluation", "bench", "viz"},
    {"cli"},
)
# The ground floors of the domains: operators and plain facts that models stand on.
GROUND = {
    "vsuite.pointcloud": {"nn", "boxes", "nms_kernel", "point_kernels", "point_ops", "voxels"},
    "vsuite.video_pose": {"heatmaps", "skeletons"},
}
# `create_model` fills the models that it builds: called, never at import.
UPWARDS = {("vsuite.core.registry", "vsuite.core.weights")}


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for source in SOURCES:
        for path in source.rglob("*.py"):
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """Dotted names that a module imports, those under `if TYPE_CHECKING` apart."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            yield from (resolve(base, alias.name) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(path.read_text()))


def resolve(base: str, name: str) -> str:
    """The module that `from base import name` reaches: a submodule, or where the facade of the core takes the name from."""
    if f"{base}.{name}" in modules():
        return f"{base}.{name}"
    if base == "vsuite.core":
        import vsuite.core

        return vsuite.core._LAZY.get(name, base)
    return base


def floor(module: str) -> int:
    """Floor of a module of the core; the facade `vsuite.core` itself holds only the ground floor at import."""
    part = [*module.split("."), ""][2]
    return next((i for i, parts in enumerate(FLOORS) if part in parts), 0 if not part else -1)


def ours() -> list[tuple[str, str]]:
    return [(name, target) for name, path in modules().items() for target in imports(name, path) if target.split(".")[0] == "vsuite"]


def test_the_walk_sees_the_imports() -> None:
    assert ("vsuite.core.weights", "vsuite.core.registry") in ours()
    assert ("vsuite.core.registry", "vsuite.core.weights") in ours()
    assert ("vsuite.medical.models.segformer3d", "vsuite.core.nn") in ours()
    assert resolve("vsuite.core", "load_published") == "vsuite.core.weights"


def test_every_module_of_the_core_has_a_floor() -> None:
    assert not [name for name in modules() if name.startswith("vsuite.core") and floor(name) < 0]


def test_the_core_imports_downwards() -> None:
    wrong = [
        f"{name} -> {target}"
        for name, target in ours()
        if name.startswith("vsuite.core.")
        and target.startswith("vsuite.core")
        and floor(target) > floor(name)
        and (name, target) not in UPWARDS
    ]
    assert not wrong


def test_the_core_knows_no_domain() -> None:
    assert not [f"{name} -> {target}" for name, target in ours() if name.startswith("vsuite.core") and not target.startswith("vsuite.core")]


def test_domains_do_not_know_each_other() -> None:
    wrong = [
        f"{name} -> {target}"
        for name, target in ours()
        if not name.startswith("vsuite.core") and target.split(".")[1] not in ("core", name.split(".")[1])
    ]
    assert not wrong


def test_only_a_cli_imports_a_cli() -> None:
    wrong = [
        f"{name} -> {target}"
        for name, target in ours()
        if "cli" in target.split(".") and "cli" not in name.split(".") and not name.endswith("__main__")
    ]
    assert not wrong


def stands_on(module: str, allowed: set[str]) -> bool:
    """Whether a module is in the core's two lower floors, or in one of the allowed parts of a domain."""
    return floor(module) <= 1 if module.startswith("vsuite.core") else module.split(".")[2] in allowed


def test_models_of_a_domain_stand_on_the_ground_floor() -> None:
    wrong = []
    for name, target in ours():
        domain, part = ".".join(name.split(".")[:2]), [*name.split("."), ""][2]
        ground = GROUND.get(domain, set())
        if domain != "vsuite.core" and part in ground | {"models"} and not stands_on(target, ground | ({part} & {"models"})):
            wrong.append(f"{name} -> {target}")
    assert not wrong


def test_forbidden_libraries_are_nowhere() -> None:
    files = [path for folder in ("shared", "packages", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    found = [f"{path}: {target}" for path in files for target in imports("", path) if target.split(".")[0] in FORBIDDEN]
    assert not found


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    """At the top of a module nothing heavy is imported."""
    wrong = [
        f"{name} -> {target}"
        for name, path in modules().items()
        for target in imports(name, path, at_import_only=True)
        if target.split(".")[0] in HEAVY and (name, target.split(".")[0]) not in OPEN_HEAVY
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import vsuite.core", set()),
        ("import vsuite.core.cli", {"rich", "typer"}),
        ("import vsuite.core; vsuite.core.list_models()", {"torch", "numpy"}),
        ("import vsuite.medical.cli", {"rich", "typer", "torch", "numpy", "nibabel", "scipy", "pydantic"}),
    ],
)
def test_imports_are_light(code: str, allowed: set[str]) -> None:
    """Modules are counted rather than seconds: what is not loaded costs nothing."""
    watched = HEAVY | {"torch", "numpy", "scipy", "nibabel", "pydantic", "rich", "typer", "safetensors", "ignite"}
    report = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded & watched <= allowed
    if not allowed:
        assert not [name for name in loaded if name.startswith("vsuite.") and ".models" in name]
        assert not [name for name in loaded if name.startswith("vsuite.") and not name.startswith("vsuite.core")]
