"""The distributions as users get them: built, installed into a new environment, used outside the checkout."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "vsuite-core": ("shared", "core"),
    "vsuite-medical": ("packages/medical", "medical"),
    "vsuite-pointcloud": ("packages/pointcloud", "pointcloud"),
    "vsuite-restoration": ("packages/restoration", "restoration"),
    "vsuite-video-pose": ("packages/video_pose", "video_pose"),
}
FOLDERS = {"vsuite": "."} | {name: folder for name, (folder, _) in PACKAGES.items()}
IMPORTS = [package for _, package in PACKAGES.values()]
COMMANDS = ("vsuite-medical", "vsuite-pointcloud", "vsuite-pose", "vsuite-restore")


def project(folder: str) -> dict:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Output of a command that must succeed; sources on PYTHONPATH would hide what is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every distribution built as `python -m build` does: an sdist, and the wheel from that."""
    out = tmp_path_factory.mktemp("dist")
    for folder in FOLDERS.values():
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT / folder)
    return {name: next(out.glob(f"{name.replace('-', '_')}-[0-9]*.whl")) for name in FOLDERS}


@pytest.fixture(scope="session")
def contents(wheels: dict[str, Path]) -> dict[str, set[str]]:
    return {name: set(zipfile.ZipFile(path).namelist()) for name, path in wheels.items()}


@pytest.fixture(scope="session")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with our wheels. Third-party packages are those of this one: a line in a .pth file shows them,
    and does not process the .pth files there, which is what the editable installs hang on."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", *wheels.values())
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_every_distribution_is_known() -> None:
    on_disk = {path.parent for path in [ROOT / "pyproject.toml", ROOT / "shared/pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")]}
    assert on_disk == {(ROOT / folder) for folder in FOLDERS.values()}
    assert {project(folder)["name"] for folder in FOLDERS.values()} == set(FOLDERS)


def test_one_version() -> None:
    version = project("shared")["version"]
    for folder in FOLDERS.values():
        settings = project(folder)
        assert settings["version"] == version
        extras = [line for lines in settings.get("optional-dependencies", {}).values() for line in lines]
        ours = [line for line in [*settings.get("dependencies", []), *extras] if line.startswith("vsuite")]
        assert all(line.endswith(f"=={version}") for line in ours), f"{folder}: {ours}"
    for init in ROOT.glob("*/**/src/vsuite/*/__init__.py"):
        assert f'__version__ = "{version}"' in init.read_text(), init


def test_licence_is_the_same_everywhere() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert all((ROOT / folder / "LICENSE").read_text() == text for folder in FOLDERS.values())


def test_pinned_requirements_satisfy_the_ranges() -> None:
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {line.split("==")[0].lower(): line.split("==")[1] for line in lines}
    for folder in FOLDERS.values():
        settings = project(folder)
        # What needs a GPU cannot be proved here, and is not pinned.
        extras = [line for extra, lines in settings.get("optional-dependencies", {}).items() if extra != "cuda" for line in lines]
        for requirement in map(Requirement, [*settings["dependencies"], *extras]):
            if not requirement.name.startswith("vsuite"):
                assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_nobody_owns_the_namespace(contents: dict[str, set[str]]) -> None:
    assert not [path for path in ROOT.glob("*/**/src/vsuite/__init__.py") if ".venv" not in path.parts]
    packages = {}
    for name, files in contents.items():
        code = {file for file in files if ".dist-info/" not in file}
        assert all(file.startswith("vsuite/") and file.count("/") >= 2 for file in code), f"{name}: {sorted(code)[:5]}"
        packages[name] = {file.split("/")[1] for file in code}
    assert packages == {"vsuite": set()} | {name: {package} for name, (_, package) in PACKAGES.items()}


@pytest.mark.parametrize(("name", "package"), [(name, package) for name, (_, package) in PACKAGES.items()])
def test_wheels_hold_every_file_of_the_source(contents: dict[str, set[str]], name: str, package: str) -> None:
    source = ROOT / FOLDERS[name] / "src"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    in_wheel = {file for file in contents[name] if ".dist-info/" not in file}
    assert in_wheel == files
    assert f"vsuite/{package}/py.typed" in in_wheel
    assert any(file.endswith(".dist-info/licenses/LICENSE") for file in contents[name])


def test_metadata(wheels: dict[str, Path]) -> None:
    for name, path in wheels.items():
        with zipfile.ZipFile(path) as archive:
            entry = next(file for file in archive.namelist() if file.endswith(".dist-info/METADATA"))
            metadata = email.message_from_bytes(archive.read(entry))
        assert metadata["Name"] == name
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata["Requires-Python"] == ">=3.11"
        assert len(metadata.get_payload()) > 100, f"{name}: no README"
        wanted = [line.split(";")[0] for line in metadata.get_all("Requires-Dist", [])]
        assert not [line for line in wanted if line.startswith(("torchvision", "timm", "einops", "mmcv", "opencv-python-headless"))]


def test_installed_code_comes_from_the_wheels(installed: Path, tmp_path: Path) -> None:
    code = (
        f"import vsuite, {', '.join(f'vsuite.{package}' for package in IMPORTS)}\n"
        f"print(*vsuite.__path__, {', '.join(f'vsuite.{package}.__file__' for package in IMPORTS)}, sep='\\n')"
    )
    places = run(installed / "bin/python", "-c", code, cwd=tmp_path).split()
    assert len(places) == 1 + len(IMPORTS)
    assert all(Path(place).is_relative_to(installed) for place in places), places


def test_commands_as_installed(installed: Path, tmp_path: Path) -> None:
    assert "segformer3d" in run(installed / "bin/vsuite", "models", cwd=tmp_path)
    for command in COMMANDS:
        words = run(installed / "bin" / command, "--help", cwd=tmp_path)
        assert all(verb in words for verb in ("train", "predict", "evaluate", "export", "demo")), words
    assert not list(tmp_path.iterdir()), "asking for help wrote files"


def test_package_data_as_installed(installed: Path, tmp_path: Path) -> None:
    code = "\n".join(
        (
            "from importlib.resources import files",
            f"for package in {IMPORTS}:",
            "    for file in files(f'vsuite.{package}').rglob('*'): print(file.name)",
        )
    )
    names = run(installed / "bin/python", "-c", code, cwd=tmp_path).split()
    sources = [ROOT / folder / "src" for folder in FOLDERS.values() if folder != "."]
    data = {p.name for source in sources for p in source.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts}
    assert data <= set(names)
