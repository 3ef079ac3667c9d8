"""Reading and saving weights, safely: published checkpoints -> our names, and back.

Nothing here ever unpickles arbitrary objects: `.pth`, `.pt`, `.bin` and `.ckpt` are read with
`weights_only=True`, else by `read_restricted`, which makes inert placeholders of them, `.npz` without pickles.
"""

from __future__ import annotations

import fnmatch
import inspect
import io
import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vsuite.core import registry
from vsuite.core.errors import InputError, unknown
from vsuite.core.files import atomic_path
from vsuite.core.registry import PublishedLayout
from vsuite.core.unpickling import read_restricted

Source = str | Path | BinaryIO | Mapping[str, Any]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz")
# Where training scripts put the state dict inside the file; the averaged weights first, as those are the ones published results use.
# `ema_state_dict` comes after `state_dict`: mmengine, which writes both, swaps them, so that the averages are in the latter.
CONTAINERS = (
    "params_ema",
    "params-ema",
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "ema_state_dict",
    "model_state_dict",
    "model",
    "model_pos",
    "network_weights",
    "params",
    "net",
    "module",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "netG.", "backbone.")


@dataclass
class LoadReport:
    """What happened to each name of a checkpoint.

    Attributes:
        loaded: our names that were filled.
        renamed: published name -> our name, where they differ.
        resized: our name -> (published shape, our shape), where a table was interpolated or a first convolution folded.
        ignored: names of the file that carry nothing a model learns.
        missing: our names that the file lacks.
        unexpected: names of the file that the model lacks.
        mismatched: our name -> (published shape, our shape), where they differ.
        fresh: our names that were left as initialised, as the file has other classes or lacks norms that only we have.
    """

    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)

    def problems(self) -> str:
        """One line that names what is missing, left over or of another shape; empty if all is well."""
        shapes = [f"{name} {list(got)} instead of {list(want)}" for name, (got, want) in self.mismatched.items()]
        parts = [("missing", self.missing), ("left over", self.unexpected), ("of another shape", shapes)]
        return "; ".join(f"{len(names)} {what}: {_shorten(names)}" for what, names in parts if names)


def _shorten(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def _label(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "the given weights"))


def read_state_dict(source: Source) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names in the file, without containers and the `PREFIXES` that all names share.

    Args:
        source: a path (`.safetensors`, `.pth`, `.pt`, `.bin`, `.ckpt`, `.npz`), an open binary file (torch's or
            safetensors' format), or a mapping of tensors or arrays.

    Raises:
        InputError: for a missing, truncated or foreign file, one that would need unpickling, or one without tensors.
    """
    *_, state = _unwrapped(_read_tensors(source))
    return state


def _read_tensors(source: Source) -> dict[str, Tensor]:
    label = _label(source)
    content: Any = source
    if isinstance(source, str | Path):
        content = _read_file(Path(source))
    elif not isinstance(source, Mapping):
        content = _read_stream(source, label)
    for _ in range(3):  # containers nest; a damaged file may even contain itself
        if isinstance(content, Mapping):
            content = next(
                (content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping) and content[key]), _only_value(content)
            )
    if not isinstance(content, Mapping):
        raise InputError(f"{label}: holds a {type(content).__name__}, not a state dict")
    try:
        state = {str(name): torch.as_tensor(value) for name, value in content.items() if isinstance(value, Tensor | np.ndarray)}
    except (TypeError, ValueError) as error:  # arrays of text or in foreign byte order
        raise InputError(f"{label}: holds an array that is no tensor: {_first_line(error)}") from error
    if not state:
        raise InputError(f"{label}: holds no tensors")
    return state


def _only_value(content: Mapping[Any, Any]) -> Any:
    """The tensors, or the known container, that a dictionary holds under a single name that is not known; else the dictionary itself."""
    value = next(iter(content.values())) if len(content) == 1 else None
    if not isinstance(value, Mapping):
        return content
    return value if any(isinstance(entry, Tensor) or key in CONTAINERS for key, entry in value.items()) else content


def _unwrapped(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state dict as it is, then without the first prefix that all names share, without the first two, and so on."""
    yield state
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name[len(prefix) :]: value for name, value in state.items()}
        yield state


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: weights must end in one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:  # objects beside the weights, as mmengine leaves them, or damaged
        return read_restricted(path)
    except Exception as error:  # the readers raise many kinds for damaged files
        raise _unreadable(path, error) from error


def _read_stream(stream: BinaryIO, label: str) -> Any:
    try:
        data = stream.read()
        if data[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
            return safetensors.torch.load(data)
        stream.seek(0)
        return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(label, error) from error


def _unreadable(label: object, error: Exception) -> InputError:
    if isinstance(error, pickle.UnpicklingError):  # torch would advise to read the file unsafely
        return InputError(f"{label}: not plain weights: damaged, or with Python objects, which are never unpickled")
    said = _first_line(error).partition(". ")[0]  # torch goes on with advice
    if isinstance(error, MemoryError) or "allocate memory" in said or "not enough memory" in said:
        return InputError(f"{label}: does not fit into memory: {said}")
    damaged = "" if isinstance(error, OSError) else ", the file is damaged, cut short or something else"
    return InputError(f"{label}: cannot be read as weights{damaged}: {said}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def find_weights(source: str | Path) -> Path:
    """The file at a path, the best weights of a run folder, else the weights of this name that an installed package ships.

    Raises:
        InputError: for a missing file, another ending than `SUFFIXES`, and an unknown name (naming the nearest).
    """
    for path in (Path(source), Path(source) / "checkpoints" / "best.safetensors"):
        if path.is_file():
            if path.suffix not in SUFFIXES:
                raise InputError(f"{path}: weights end in one of {', '.join(SUFFIXES)}")
            return path
    shipped = {name: path for model in registry.list_models(with_weights=True) for name, path in registry.model_info(model).weights.items()}
    if str(source) in shipped:
        return shipped[str(source)]
    if Path(source).is_dir():
        raise InputError(f"{source}: is no run folder: it has no checkpoints/best.safetensors")
    if Path(source).suffix or len(Path(source).parts) > 1:
        raise InputError(f"{source}: no such file or run folder")
    raise unknown("weights (and no such file)", str(source), shipped)


def read_metadata(source: Source) -> dict[str, Any]:
    """What `save_weights` noted beside the tensors: "model", "options" and the caller's own; empty for other files."""
    if not isinstance(source, str | Path) or Path(source).suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(source, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("vsuite", "{}"))
    except Exception as error:
        raise _unreadable(source, error) from error
    kinds = {"model": str, "system": str, "options": dict}
    if not isinstance(metadata, dict) or any(key in metadata and not isinstance(metadata[key], kind) for key, kind in kinds.items()):
        raise InputError(f"{source}: its note on how to build the model is damaged")
    return metadata


def read_options(source: Source, name: str) -> dict[str, Any]:
    """The options that weights saved by us for the model `name` were built with; empty where the file does not say."""
    metadata = read_metadata(source)
    if metadata.get("model", name) != name:
        raise InputError(f"{_label(source)}: holds weights of {metadata['model']!r}, not of {name!r}")
    return metadata.get("options", {})


def rename(state: Mapping[str, Any], layout: PublishedLayout, *, to_published: bool = False) -> dict[str, Any]:
    """The same tensors under our names, or with `to_published` under the published ones."""
    names = _published_names(state, layout) if to_published else _our_names(state, layout)
    renamed: dict[str, Any] = {}
    for name, value in zip(names, state.values(), strict=True):
        if name in renamed:
            raise InputError(f"two tensors of the checkpoint map onto {name!r}")
        renamed[name] = value
    return renamed


def _our_names(names: Iterable[str], layout: PublishedLayout) -> list[str]:
    """Our names for those of a checkpoint, which may be the authors' or another library's."""
    names = list(names)
    for other in layout.others:
        if set(other.keys) <= set(names):
            return [other.rename(name) for name in names]
    return [_replaced(name, layout.renames) for name in names]


def _published_names(names: Iterable[str], layout: PublishedLayout) -> list[str]:
    return [_replaced(name, [(ours, published) for published, ours in reversed(layout.renames)]) for name in names]


def _replaced(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for before, after in pairs:
        name = name.replace(before, after)
    return name


def load_weights(model: nn.Module, source: Source, *, strict: bool = True) -> LoadReport:
    """Fills the model from a checkpoint, in the model's own precision.

    Args:
        model: any module; the published names of a registered one are understood as well as ours.
        source: see `read_state_dict`; a prefix that the model's own names have stays.
        strict: raise if anything is missing, left over or of another shape; else load what fits and report the rest.

    Raises:
        InputError: naming what does not fit. The model is unchanged then.
    """
    layout = _layout_of(model)
    ours = model.state_dict()

    def known(state: dict[str, Tensor]) -> int:
        return sum(name in ours for name in (_our_names(state, layout) if layout else state))

    state = max(reversed(list(_unwrapped(_read_tensors(source)))), key=known)
    renamed = rename(state, layout) if layout else state
    names = {before: after for before, after in zip(state, renamed, strict=True) if before != after}
    return _fill(model, renamed, LoadReport(renamed=names), _label(source), layout, strict=strict)


def _fill(
    model: nn.Module, state: Mapping[str, Tensor], report: LoadReport, label: str, layout: PublishedLayout | None, *, strict: bool
) -> LoadReport:
    """Copies what fits into the model and completes the report."""
    ours = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    fitting = {}
    for key, value in state.items():
        if _ignored(key, ours, layout):
            report.ignored.append(key)
            continue
        if key not in ours:
            report.unexpected.append(key)
            continue
        fitted = _fitted(key, value, ours[key].shape, layout)
        shapes = tuple(value.shape), tuple(ours[key].shape)
        if fitted is not None:
            fitting[key] = fitted
            if shapes[0] != shapes[1]:
                report.resized[key] = shapes
        elif layout and layout.head and key.startswith(layout.head):
            report.fresh.append(key)
        else:
            report.mismatched[key] = shapes
    report.loaded = list(fitting)
    for key in ours:
        if key not in state:
            left = layout is not None and any(fnmatch.fnmatch(key, pattern) for pattern in layout.fresh)
            (report.fresh if left else report.missing).append(key)
    problems = report.problems() or (layout.conflict(model, state) if layout and layout.conflict else "")
    if strict and problems:
        name = getattr(model, "built_from", {}).get("model", type(model).__name__)
        raise InputError(f"{label}: does not fit {name}: {problems}")
    broken = [key for key, value in fitting.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if broken:
        raise InputError(f"{label}: NaN or infinite values in {_shorten(broken)}")
    model.load_state_dict(fitting, strict=False)
    return report


def _ignored(key: str, ours: Mapping[str, Tensor], layout: PublishedLayout | None) -> bool:
    """Whether a tensor of a checkpoint holds nothing learnt, or belongs to a classifier that the model does without."""
    if key.endswith("num_batches_tracked"):
        return True
    if layout is None:
        return False
    if any(fnmatch.fnmatch(key, pattern) for pattern in layout.ignored):
        return True
    absent = [start for start in (layout.head, layout.norm) if start and not any(name.startswith(start) for name in ours)]
    return key.startswith(tuple(absent))


def _fitted(key: str, value: Tensor, shape: Sequence[int], layout: PublishedLayout | None) -> Tensor | None:
    """The value in the model's shape; None where it cannot be brought into it."""
    if tuple(value.shape) == tuple(shape):
        return value
    if layout is None:
        return None
    if key == layout.stem:
        return fold_channels(value, shape)
    return layout.resize(key, value, shape) if layout.resize else None


def fold_channels(weight: Tensor, shape: Sequence[int]) -> Tensor | None:
    """The kernels of a first convolution on RGB for another number of channels, in the way users know from timm.

    One channel takes the sum over RGB; n channels repeat R, G, B, R, ... and scale by 3 / n. None where the shapes differ
    in more than that.
    """
    channels = shape[1]
    if weight.ndim != 4 or weight.shape[1] != 3 or (weight.shape[0], *weight.shape[2:]) != (shape[0], *shape[2:]):
        return None
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)


def load_published(source: Source, system: str | None = None, **options: Any) -> nn.Module:
    """Builds the model that a checkpoint belongs to and fills it.

    The system and its sizes are found from the names and shapes in the file (or from the note that `save_weights`
    leaves). What a checkpoint cannot tell (an attention scale, say) is taken from `options`, else assumed as the
    system's page says and noted in `model.built_from["assumed"]`.

    Args:
        source: see `read_state_dict`.
        system: narrows the search; needed only where a file fits several systems.
        options: overrides of what was found.

    Raises:
        InputError: if no system fits, several do, or tensors are missing or left over.
    """
    label, metadata = _label(source), read_metadata(source)
    noted = registry.model_info(metadata["model"]).system if "model" in metadata else metadata.get("system", system)
    if system not in (None, noted):
        raise InputError(f"{label}: holds weights of {noted!r}, not of {system!r}")
    if "model" in metadata:
        return registry.create_model(metadata["model"], weights=source, **options)  # type: ignore[arg-type]
    options = metadata.get("options", {}) | options
    name, layout, state = _recognise(source, noted)
    for key in options:
        if key not in inspect.signature(layout.build).parameters:
            raise unknown(f"option of {name}", key, inspect.signature(layout.build).parameters)
    try:
        options = layout.infer(state) | options
        assumed = {key: value for key, value in layout.assumed.items() if key not in options}
        options |= assumed
        model = layout.build(**options)
    except KeyError as error:
        raise InputError(f"{label}: is no complete checkpoint of {name}: {error} is missing") from error
    except (IndexError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{label}: is no checkpoint of {name}: {_first_line(error)}") from error
    _fill(model, state, LoadReport(), label, layout, strict=True)
    model.built_from = {"system": name, "options": options, "assumed": assumed}  # type: ignore[assignment]
    return model


def _recognise(source: Source, system: str | None) -> tuple[str, PublishedLayout, dict[str, Tensor]]:
    """The one system that a checkpoint fits, its layout, and the tensors under our names."""
    found: dict[str, tuple[PublishedLayout, dict[str, Tensor]]] = {}
    for state in _unwrapped(_read_tensors(source)):
        for name, layout in _layouts(system).items():
            if name not in found and set(layout.keys) <= set(_our_names(state, layout)):
                found[name] = layout, state
    if not found:
        tried = system or "any of " + ", ".join(_layouts(None))
        raise InputError(f"{_label(source)}: is not a checkpoint of {tried}; it holds {_shorten(list(state))}")
    if len(found) > 1:  # a system whose telling names include all of another's is the more particular one
        keys = {name: set(layout.keys) for name, (layout, _) in found.items()}
        found = {name: fit for name, fit in found.items() if not any(keys[name] < other for other in keys.values())}
    if len(found) > 1:
        raise InputError(f"{_label(source)}: fits {' and '.join(found)}; name one as `system`")
    ((name, (layout, state)),) = found.items()
    return name, layout, rename(state, layout)


def _layout_of(model: nn.Module) -> PublishedLayout | None:
    """The published layout of a model that was built by name or from a checkpoint."""
    built_from = getattr(model, "built_from", {})
    if "model" in built_from:
        return registry.model_info(built_from["model"]).layout
    return _layouts(built_from["system"])[built_from["system"]] if "system" in built_from else None


def _layouts(system: str | None) -> dict[str, PublishedLayout]:
    infos = [registry.model_info(name) for name in registry.list_models()]
    layouts = {info.system: info.layout for info in infos if info.layout is not None}
    if system is None:
        return layouts
    if system not in layouts:
        raise unknown("system with a published layout", system, layouts)
    return {system: layouts[system]}


def save_weights(
    model: nn.Module,
    path: str | Path,
    *,
    published: bool = False,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Saves the state dict atomically: as safetensors with a note of how to build the model, or in torch's format.

    Args:
        path: ends in `.safetensors`, `.pth`, `.pt` or `.bin`.
        published: use the authors' names, so that other tools load the file.
        dtype: store floating-point tensors in this type, such as `torch.float16`; values beyond its range are an `InputError`.
        metadata: further facts to keep beside the tensors (safetensors only; see `read_metadata`).
    """
    path = Path(path)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if dtype is not None:
        state = {name: _converted(value, dtype, name) if value.is_floating_point() else value for name, value in state.items()}
    layout = _layout_of(model) if published else None
    state = rename(state, layout, to_published=True) if layout else state
    if path.suffix == ".safetensors":
        built_from = {} if published else getattr(model, "built_from", {})
        note = {key: built_from[key] for key in ("model", "system", "options") if key in built_from}
        text = json.dumps(note | dict(metadata or {}))
        data = safetensors.torch.save({k: v.clone() for k, v in state.items()}, metadata={"format": "pt", "vsuite": text})
    elif path.suffix in (".pth", ".pt", ".bin"):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
    else:
        raise InputError(f"{path}: weights are saved as .safetensors, .pth, .pt or .bin")
    with atomic_path(path) as temporary:  # plain bytes, so that a full disk shows as an OSError whatever the format
        temporary.write_bytes(data)


def _converted(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    converted = value.to(dtype)
    if not torch.equal(converted.isfinite(), value.isfinite()):
        largest = value[value.isfinite()].abs().max()
        raise InputError(f"{name} holds values up to {largest:.4g}, more than {dtype} can hold; save in float32 or bfloat16")
    return converted
