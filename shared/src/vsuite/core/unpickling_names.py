"""The names in a pickle that are answered, and with what; see `vsuite.core.unpickling`.

Every function here takes what a pickle gives it, which may be anything, and allocates no more than that.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DTYPE_CODE = re.compile(r"[biufcSUO]\d{1,9}")  # no structures and no dates, whose further state would have to be trusted
LONGEST_KEY = 16  # parts of a tuple that is a key


@dataclass(eq=False)
class Global:
    """A class or function that a pickle names and that is not looked up: `name` is "module.name"."""

    name: str

    def __repr__(self) -> str:
        return f"<name {self.name}>"


@dataclass(eq=False)
class Placeholder:
    """An object that is not made: what a pickle would have called, and what it would have put in.

    Attributes:
        name: of the class or function, "module.name".
        args, kwargs: that it would have been called with.
        state: its attributes, usually a dictionary; None where there are none.
        elements, entries: of a list's or a dictionary's descendant.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    state: Any = None
    elements: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<placeholder of {self.name}>"


class Unsafe(pickle.UnpicklingError):
    """What no file that we read needs."""


@dataclass(frozen=True, eq=False)
class Known:
    """A name that is answered: by a function of this module."""

    name: str
    call: Callable[..., Any]


# --- containers and numbers ---


PLAIN = (str, int, float, complex, bytes, type(None), Global, Placeholder, np.generic)


def check_key(key: Any) -> Any:
    """A key of a dictionary or element of a set: plain, or a tuple of plain ones. Hashing deep tuples would overflow the stack."""
    for part in key if isinstance(key, tuple) and len(key) <= LONGEST_KEY else (key,):
        if not isinstance(part, PLAIN):
            raise Unsafe(f"a {type(part).__name__} in a key")
    return key


def _mapping(*args: Any) -> OrderedDict[Any, Any]:
    """Of a dictionary, or of pairs."""
    given = args[0] if args else {}
    pairs = given.items() if isinstance(given, dict) else given
    return OrderedDict((check_key(key), value) for key, value in _plain(pairs))


def _counter(counts: Any = ()) -> dict[Any, Any]:
    return dict(_mapping(counts))


def _default_dict(factory: Any = None, *content: Any) -> dict[Any, Any]:
    return dict(_mapping(*content))


def _plain(values: Any) -> Iterable[Any]:
    if not isinstance(values, list | tuple | set | frozenset | type({}.items())):
        raise Unsafe(f"a {type(values).__name__} where elements are expected")
    return values


def _set(values: Any = ()) -> set[Any]:
    return {check_key(value) for value in _plain(values)}


def _frozenset(values: Any = ()) -> frozenset[Any]:
    return frozenset(_set(values))


def _complex(real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


def _bytes(content: Any = b"", encoding: str = "latin1") -> bytes:
    """Also of text, as protocols before 3 write bytes. Never of a number, which would allocate as many."""
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    if not isinstance(content, str) or encoding not in ("latin1", "latin-1"):
        raise Unsafe("bytes of something else than text")
    return content.encode("latin1")


def _bytearray(content: Any = b"", encoding: str = "latin1") -> bytearray:
    return bytearray(_bytes(content, encoding))


# --- numpy ---


@dataclass(eq=False)
class DType:
    """A numpy type as it is pickled: its code, and its byte order once the state has come."""

    code: str
    order: str = "="

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(object) if self.code[0] == "O" else np.dtype(self.order + self.code)


def _dtype(code: Any, *_: Any) -> Any:
    if not isinstance(code, str) or not DTYPE_CODE.fullmatch(code):
        return Placeholder("numpy.dtype", (code,))
    return DType(code)


def _array(subtype: Any, *_: Any) -> Any:
    """An empty array, which the state that follows fills in place, since others may refer to it already."""
    return np.empty(0) if isinstance(subtype, Known) and subtype.name == "numpy.ndarray" else Placeholder("numpy array", (subtype,))


def fill_array(array: NDArray[Any], state: Any) -> None:
    shape, dtype, fortran, content = state[-4:]
    if array.size:
        raise Unsafe("an array filled twice")
    if not isinstance(dtype, DType):
        raise Unsafe("an array of structures or dates")
    shape, kind = shape_of(shape), dtype.numpy
    count = math.prod(shape)
    if dtype.code[0] == "O":
        if type(content) is not list or len(content) != count:
            raise Unsafe("an array of another size than its objects")
    else:
        content = _bytes(content)
        if len(content) != count * kind.itemsize:
            raise Unsafe(f"an array of {len(content)} bytes where its shape needs {count * kind.itemsize}")
    # numpy's own method, but only with a type that was made here and a content of the size that it asks for
    array.__setstate__((1, shape, kind, bool(fortran), content))  # type: ignore[arg-type]


def shape_of(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(side) is int and 0 <= side < 2**62 for side in shape):
        raise Unsafe("a shape that is none")
    return tuple(shape)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> NDArray[Any]:
    """Arrays of protocol 5."""
    array = np.empty(0)
    fill_array(array, (shape, dtype, order == "F", content))
    return array


def _scalar(dtype: Any, content: Any = b"") -> Any:
    if not isinstance(dtype, DType) or dtype.code[0] == "O" or len(content := _bytes(content)) != dtype.numpy.itemsize:
        raise Unsafe("a number of another size than its type")
    return np.frombuffer(content, dtype.numpy)[0]


# --- torch ---


@dataclass(frozen=True)
class StorageType:
    dtype: torch.dtype


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    """A view of a storage, within its bounds and no larger than it (an expanded tensor is refused: copying it has no bounds)."""
    if not isinstance(storage, Tensor):
        return Placeholder("torch tensor", (storage, offset, size, stride))
    size, stride = shape_of(tuple(size)), shape_of(tuple(stride))
    (start,) = shape_of((offset,))
    count = math.prod(size)
    end = start + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) + 1 if count else start
    if end > storage.numel() or count > storage.numel():
        raise Unsafe(f"a tensor of {count} values beyond its storage of {storage.numel()}")
    return storage.as_strided(size, stride, start)


def _tensor_of_type(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    """Types that have no storage class of their own lie in bytes."""
    if not isinstance(storage, Tensor) or not isinstance(dtype, torch.dtype):
        return Placeholder("torch tensor", (storage, offset, size, stride))
    return _tensor(storage.view(dtype), offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _of_subclass(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    """A tensor of a subclass, or with attributes: its plain tensor."""
    plain = isinstance(function, Known) and function.call in (_tensor, _tensor_of_type, _parameter)
    return function.call(*args) if plain else Placeholder("torch tensor", args)


def _torch_size(sides: Any = ()) -> torch.Size:
    return torch.Size(shape_of(tuple(sides)))


def _reconstructor(kind: Any, base: Any = None, content: Any = None) -> Any:
    """Objects of protocols before 2."""
    return Placeholder(kind.name if isinstance(kind, Global) else "object", () if content is None else (content,))


STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _counter,
    "collections.defaultdict": _default_dict,
    "_codecs.encode": _bytes,
    "copyreg._reconstructor": _reconstructor,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.complex": _complex,
    "numpy.dtype": _dtype,
    "numpy.ndarray": lambda *_: Placeholder("numpy.ndarray"),
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "torch.Size": _torch_size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
}
KNOWN: Mapping[str, Any] = {
    **{name: Known(name, call) for name, call in CALLS.items()},
    **{f"torch.{name}": StorageType(dtype) for name, dtype in STORAGES.items()},
    **{f"torch.cuda.{name}": StorageType(dtype) for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": StorageType(torch.uint8),
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
