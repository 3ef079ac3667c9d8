"""Reading pickles without running anything: checkpoints of mmengine, mmdetection and mmseg, annotations of pyskl, plain pickles.

A pickle is a program: it may name any function of any module and have it called. Here no name is ever looked up. The few
that rebuild tensors, arrays and containers are answered by functions of our own, every other becomes an inert
`Placeholder` that keeps what it was called with. Nothing is imported, no method that a pickle names is called, and no
object that others share can be changed. What is allocated is bounded by the size of the file.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.core.unpickling_names import (
    KNOWN,
    OLD_MODULES,
    DType,
    Global,
    Known,
    Placeholder,
    StorageType,
    Unsafe,
    check_key,
    fill_array,
    shape_of,
)

if TYPE_CHECKING:

    class _PythonUnpickler:
        """What is used of `pickle._Unpickler`, which type checkers take for the one in C."""

        dispatch: ClassVar[dict[int, Callable[[Any], None]]]
        stack: list[Any]

        def __init__(self, stream: Any, *, encoding: str) -> None: ...
        def load(self) -> Any: ...
        def readline(self) -> bytes: ...
        def pop_mark(self) -> list[Any]: ...

else:
    _PythonUnpickler = pickle._Unpickler

__all__ = ["Global", "Placeholder", "read_restricted"]

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first object of torch's format before 1.6
SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)


def read_restricted(path: str | Path) -> Any:
    """The content of a file of torch's (both formats) or of a plain pickle; nothing in it is executed.

    Tensors (on the CPU), numpy arrays, and Python's containers, numbers and texts come back as they are. Objects of any
    other class, and results of any other function, are instances of `Placeholder`. It takes some ten times as long as
    `pickle.load` where the objects are many and small.

    Args:
        path: its name does not matter.

    Raises:
        InputError: for a missing, damaged or foreign file, and for one whose tensors or arrays do not lie within what it holds.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read_zip(path) if content[:4] == b"PK\x03\x04" else _read_stream(content)
    except Exception as error:  # a damaged or hostile file may fail in any way
        reason = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read as a checkpoint or plain pickle: damaged, or of another kind ({reason})") from error


# --- the machine ---


class _Reader(_PythonUnpickler):
    """Python's own reader with every instruction that calls, looks up or changes something replaced.

    It is the one written in Python: the one in C allocates as much as a single forged instruction asks for.

    Args:
        stream: with `read` and `readline`.
        size: of the stream in bytes.
        storage: makes the values that a persistent id names; None where there are none.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, stream: Any, size: int, storage: Callable[[Any], Any] | None = None) -> None:
        super().__init__(stream, encoding="latin1")  # so that Python 2's texts keep their bytes
        self.storage = storage
        # Of what the functions that answer copy: what a file says once could be copied a million times by referring to it.
        self.left = 4 * size + 4096

    def find_class(self, module: str, name: str) -> Any:
        full = f"{OLD_MODULES.get(module, module)}.{name}".replace("numpy._core.", "numpy.core.")
        return KNOWN.get(full) or Global(full)

    def persistent_load(self, pid: Any) -> Any:
        if self.storage is None:
            raise Unsafe("a reference to something outside")
        return self.storage(pid)

    def call(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        if type(args) is not tuple or (kwargs is not None and type(kwargs) is not dict):
            raise Unsafe("arguments that are none")
        if isinstance(function, Known):
            self.spend(args)
            return function.call(*args)
        if isinstance(function, Global | Placeholder):
            return Placeholder(function.name, args, kwargs or {})
        raise Unsafe(f"a {type(function).__name__} as a function")

    def spend(self, values: Iterable[Any]) -> None:
        self.left -= sum(len(value) for value in values if isinstance(value, SIZED))
        if self.left < 0:
            raise Unsafe("the same content copied many times")

    def reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def new_object_with_names(self) -> None:
        kwargs, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args, kwargs)

    def old_instance(self) -> None:
        module, name = (self.readline()[:-1].decode("utf-8") for _ in range(2))
        args = self.pop_mark()
        self.stack.append(self.call(self.find_class(module, name), tuple(args)))

    def old_object(self) -> None:
        function, *args = self.pop_mark()
        self.stack.append(self.call(function, tuple(args)))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.state = state
        elif type(target) is np.ndarray:
            self.spend(state)
            fill_array(target, state)
        elif isinstance(target, DType):
            order = state[1]
            target.order = order if order in ("<", ">") else "="
        elif not isinstance(target, dict | set | Tensor):  # their attributes, a state dict's `_metadata` say, are left out
            raise Unsafe(f"a state for a {type(target).__name__}")

    def set_items(self) -> None:
        self._put(self.pop_mark())

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Placeholder) else target
        if not isinstance(entries, dict):
            raise Unsafe(f"entries for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[check_key(key)] = value

    def dictionary(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._put(items)

    def append_elements(self) -> None:
        self._extend(self.pop_mark())

    def append_element(self) -> None:
        self._extend([self.stack.pop()])

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        elements = target.elements if isinstance(target, Placeholder) else target
        if not isinstance(elements, list):
            raise Unsafe(f"elements for a {type(target).__name__}")
        elements.extend(values)

    def add_items(self) -> None:
        values = self.pop_mark()
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.elements.extend(values)
        elif isinstance(target, set):
            target.update(check_key(value) for value in values)
        else:
            raise Unsafe(f"elements for a {type(target).__name__}")

    def frozen_set(self) -> None:
        values = self.pop_mark()
        self.stack.append(frozenset(check_key(value) for value in values))

    def refuse(self) -> None:
        raise Unsafe("an instruction that no checkpoint needs")


for _codes, _instruction in (
    ((pickle.REDUCE, pickle.NEWOBJ), _Reader.reduce),
    ((pickle.NEWOBJ_EX,), _Reader.new_object_with_names),
    ((pickle.INST,), _Reader.old_instance),
    ((pickle.OBJ,), _Reader.old_object),
    ((pickle.BUILD,), _Reader.build),
    ((pickle.SETITEM,), _Reader.set_item),
    ((pickle.SETITEMS,), _Reader.set_items),
    ((pickle.DICT,), _Reader.dictionary),
    ((pickle.APPEND,), _Reader.append_element),
    ((pickle.APPENDS,), _Reader.append_elements),
    ((pickle.ADDITEMS,), _Reader.add_items),
    ((pickle.FROZENSET,), _Reader.frozen_set),
    ((pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER), _Reader.refuse),
):
    _Reader.dispatch.update(dict.fromkeys((code[0] for code in _codes), _instruction))


# --- torch's files ---


class _Storages:
    """The storages that persistent ids name, each made once; together no larger than the file."""

    def __init__(self, largest: int, make: Callable[[str, int], Any]) -> None:
        self.left = largest
        self.make = make
        self.made: dict[str, Tensor] = {}

    def __call__(self, pid: Any) -> Any:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise Unsafe("a reference that is no storage")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, StorageType) or type(key) is not str or view not in ([], [None]):
            raise Unsafe("a storage of an unknown kind")
        (count,) = shape_of((count,))
        size = count * kind.dtype.itemsize
        if key not in self.made:
            self.left -= size
            if self.left < 0:
                raise Unsafe("storages larger than the file")
            self.made[key] = torch.frombuffer(self.make(key, size), dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
        if self.made[key].numel() != size:
            raise Unsafe(f"the storage {key!r} in two sizes")
        return self.made[key].view(kind.dtype)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        inner = [name for name in infos if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(inner) != 1:
            raise Unsafe("not an archive of torch's")
        folder = inner[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in infos and _record(archive, infos[f"{folder}byteorder"], 16) != b"little":
            raise Unsafe("big-endian values")

        def make(key: str, size: int) -> bytearray:
            return bytearray(_record(archive, infos[f"{folder}data/{key}"], size))

        largest = path.stat().st_size
        program = _record(archive, infos[inner[0]], largest)
        return _Reader(io.BytesIO(program), len(program), _Storages(largest, make)).load()


def _record(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """A record, which torch never compresses: so it is no larger than the file."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise Unsafe(f"{info.filename} is compressed or larger than it should be")
    return archive.read(info)


def _read_stream(content: mmap.mmap) -> Any:
    """A plain pickle, or torch's older format: magic number, version, facts about the machine, the object, then its storages."""
    size = len(content)
    first = _Reader(content, size).load()
    if type(first) is not int or first != TORCH_MAGIC:
        return first
    for _ in range(2):
        _Reader(content, size).load()
    buffers: dict[str, bytearray] = {}

    def make(key: str, size: int) -> bytearray:
        return buffers.setdefault(key, bytearray(size))  # filled below

    result = _Reader(content, size, _Storages(size, make)).load()
    keys = _Reader(content, size).load()
    if type(keys) is not list or not set(buffers) <= {key for key in keys if type(key) is str}:
        raise Unsafe("storages that are missing")
    for key in keys:
        buffer = buffers.get(key, bytearray()) if type(key) is str else bytearray()
        (count,) = struct.unpack("<q", content.read(8))
        values = content.read(len(buffer))
        if len(values) != len(buffer) or not 0 <= count <= len(buffer):
            raise Unsafe(f"the storage {key!r} is cut short")
        buffer[:] = values
    return result
