"""The restricted reader: what it gives back as it was, and that nothing in a hostile file runs, imports or grows."""

from __future__ import annotations

import collections
import copyreg
import functools
import io
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.core.unpickling import Global, Placeholder, read_restricted
from vsuite.core.weights import read_state_dict


class Config(dict):
    """Stands for mmengine's ConfigDict."""


class History:
    """Stands for mmengine's HistoryBuffer."""

    def __init__(self) -> None:
        self.values = np.arange(3.0)
        self.count = np.int64(7)


def written(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def read_bytes(folder: Path, content: bytes) -> Any:
    (folder / "x.pkl").write_bytes(content)
    return read_restricted(folder / "x.pkl")


def same(one: Any, other: Any) -> bool:
    """Equal in type, shape, order and value, nan included."""
    if isinstance(other, np.ndarray):
        return type(one) is np.ndarray and one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(other, dict):
        return isinstance(one, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in other)
    if isinstance(other, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one != one)


# --- good files ---

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text(), st.integers()), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers(), max_size=4)
        | st.sets(st.text(), max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(plain, st.integers(0, 5))
def test_plain_values_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    assert same(read_restricted(written(path, value, protocol)), value)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_come_back_as_they_were(protocol: int, tmp_path: Path) -> None:
    shared = np.arange(6, dtype=np.float16).reshape(2, 3)
    content = {
        "keypoint": shared,
        "again": [shared],
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 4), np.uint8),
        "no axes": np.array(3, np.int32),
        "big-endian": np.arange(3, dtype=">f8"),
        "texts": np.array(["a", "bcd"]),
        "objects": np.array([None, "x", [1]], dtype=object),
        "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True)],
        "ordered": collections.OrderedDict(b=1, a=2),
        "default": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("aab"),
        "bytes": [b"", b"\x00\xff", bytearray(b"\x80")],
        ("a", 1): {1, 2},
    }
    found = read_restricted(written(tmp_path / "x.pkl", content, protocol))
    assert list(found) == list(content)
    for name in ("objects", "default", "counter", "big-endian"):  # the last is native now, as numpy has it
        assert list(found.pop(name)) == list(content.pop(name))
    assert found["keypoint"] is found["again"][0]
    assert not [name for name in content if not same(found[name], content[name])]
    assert found["fortran"].flags.f_contiguous


def test_annotations_as_pyskl_writes_them(tmp_path: Path) -> None:
    annotation = {
        "frame_dir": "S001C001P001R001A001", "label": 0, "img_shape": (1080, 1920), "total_frames": 3,
        "keypoint": np.random.default_rng(0).normal(size=(1, 3, 17, 2)).astype(np.float16), 
        "keypoint_score": np.ones((1, 3, 17), np.float16),
    }  # fmt: skip
    content = {"split": {"xsub_train": ["S001C001P001R001A001"], "xsub_val": []}, "annotations": [annotation]}
    assert same(read_restricted(written(tmp_path / "ntu.pkl", content, 4)), content)


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=request.param)
        return tmp_path / "x.pth"

    return write


def test_tensors_come_back_as_they_were(save: Callable[[Any], Path]) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    content = {
        "base": base,
        "view": base[1:, ::2].T,
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64, generator=generator),
        **{str(dtype): base.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.int8)},
        "size": base.shape,
        "dtype": torch.float16,
        "parameter": torch.nn.Parameter(base[0]),
    }
    found = read_restricted(save(content))
    assert found["size"] == (4, 6)
    assert found["dtype"] is torch.float16
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            assert same(found[name], value.detach()), name
    found["base"][1, 0] = 7
    assert found["view"][0, 0] == 7, "views share their storage"


def test_tensors_of_types_without_a_storage_class(tmp_path: Path) -> None:
    values = torch.tensor([1, 2, 65535], dtype=torch.uint16)
    torch.save({"x": values}, tmp_path / "x.pth")
    assert same(read_restricted(tmp_path / "x.pth")["x"], values)


def test_a_checkpoint_with_objects_gives_its_weights(save: Callable[[Any], Path]) -> None:
    """As mmengine writes them: the weights beside a message hub, a configuration, numpy scalars."""
    state = torch.nn.Conv2d(2, 3, 3).state_dict()
    config = Config(a=1, inner=Config(b=[1, 2]))
    config.root = "x"  # type: ignore[attr-defined]
    path = save({
        "meta": {"epoch": np.int64(3), "cfg": config, "time": History()},
        "message_hub": {"log_scalars": collections.OrderedDict(loss=History())},
        "state_dict": state,
        "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 0.1, momentum=0.9).state_dict(),
    })  # fmt: skip
    assert same(read_state_dict(path), dict(state))
    found = read_restricted(path)
    assert found["meta"]["epoch"] == 3
    history, config = found["message_hub"]["log_scalars"]["loss"], found["meta"]["cfg"]
    assert isinstance(history, Placeholder)
    assert history.name.endswith("test_unpickling.History")
    assert same(history.state, {"values": np.arange(3.0), "count": np.int64(7)})
    assert (config.name.rsplit(".", 1)[1], config.entries["a"], config.entries["inner"].entries) == ("Config", 1, {"b": [1, 2]})
    assert config.state == {"root": "x"}


def test_a_real_checkpoint_of_mmengine(tmp_path: Path) -> None:
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    state = {"backbone.weight": torch.ones(2, 2)}
    torch.save({"message_hub": {"loss": buffer}, "cfg": ConfigDict(model={"type": "X"}), "state_dict": state}, tmp_path / "x.pth")
    assert same(read_restricted(tmp_path / "x.pth")["state_dict"], state)
    assert same(read_state_dict(tmp_path / "x.pth"), {"weight": torch.ones(2, 2)})


def test_reading_imports_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"cantigravity\nfly\n(U\x0chttp://x.orgtR.")
    code = "import sys; from vsuite.core.unpickling import read_restricted; "
    code += f"print(read_restricted({str(path)!r}), 'antigravity' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "<placeholder of antigravity.fly> False", done.stderr


# --- hostile files ---


class Reduced:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def proof_of(folder: Path) -> str:
    return f"touch {folder / 'proof'}"


def torch_file(command: str) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(Reduced(os.system, (command,)), file)
    file.seek(0)
    return file


HOSTILE: dict[str, Callable[[str], Any]] = {
    "os.system": lambda command: Reduced(os.system, (command,)),
    "eval": lambda command: Reduced(eval, (f"__import__('os').system({command!r})",)),
    "exec": lambda command: Reduced(exec, (f"import os; os.system({command!r})",)),
    "subprocess": lambda command: Reduced(subprocess.check_call, (command.split(),)),
    "getattr of os": lambda command: Reduced(eval, (Reduced(getattr, (Reduced(__import__, ("os",)), "system")), {"c": command})),
    "a key": lambda command: {Reduced(os.system, (command,)): 1},
    "a state": lambda command: Reduced(Path, (), {"x": Reduced(os.system, (command,))}),
    "elements": lambda command: Reduced(list, (), None, iter([Reduced(os.system, (command,))])),
    "an array": lambda command: np.array([Reduced(os.system, (command,))], dtype=object),
    "a default": lambda command: Reduced(collections.defaultdict, (Reduced(os.system, (command,)),), None, None, iter([("a", 1)])),
    "torch.load": lambda command: Reduced(functools.partial(torch.load, weights_only=False), (torch_file(command),)),
    "torch's storage": lambda command: Reduced(torch.storage._load_from_bytes, (pickle.dumps(Reduced(os.system, (command,))),)),
    "pickle.loads": lambda command: Reduced(pickle.loads, (pickle.dumps(Reduced(os.system, (command,))),)),
    "a tensor of a subclass": lambda command: Reduced(torch._tensor._rebuild_from_type_v2, (os.system, object, (command,), None)),
    "torch's sparse tensor": lambda command: Reduced(torch._utils._rebuild_sparse_tensor, (os.system, (command,))),
    "copyreg": lambda command: Reduced(copyreg._reconstructor, (Reduced, object, None), {"reduced": (os.system, (command,))}),  # type: ignore[attr-defined]
}


@pytest.fixture
def harmless(tmp_path: Path) -> Iterator[None]:
    yield
    assert not (tmp_path / "proof").exists()


def read_or_refuse(path: Path) -> Any:
    """The content, or None where the file is refused in one line; any other error is raised."""
    try:
        return read_restricted(path)
    except InputError as error:
        refusal = str(error)
    assert str(path) in refusal
    assert "\n" not in refusal
    return None


def unpickle_or_fail(content: bytes) -> None:
    try:
        pickle.loads(content)
    except Exception:
        return


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_runs(name: str, protocol: int, tmp_path: Path, harmless: None) -> None:
    if name == "torch.load" and protocol < 2:
        pytest.skip("cannot be written")
    content = pickle.dumps({"state_dict": HOSTILE[name](proof_of(tmp_path))}, protocol)
    (tmp_path / "x.pth").write_bytes(content)
    read_or_refuse(tmp_path / "x.pth")
    for suffix in (".pth", ".bin"):
        (tmp_path / f"y{suffix}").write_bytes(content)
        with pytest.raises(InputError):
            read_state_dict(tmp_path / f"y{suffix}")


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - {"torch.load"}))
def test_nothing_runs_in_a_file_of_torch(name: str, save: Callable[[Any], Path], tmp_path: Path, harmless: None) -> None:
    path = save({"state_dict": {"x": torch.ones(2)}, "meta": HOSTILE[name](proof_of(tmp_path))})
    assert same(read_restricted(path)["state_dict"], {"x": torch.ones(2)})
    assert same(read_state_dict(path), {"x": torch.ones(2)})


def test_the_hostile_files_are_hostile(tmp_path: Path) -> None:
    """Python's own reader runs the command."""
    for name in ("os.system", "eval", "exec", "subprocess", "a default", "pickle.loads", "torch.load"):
        unpickle_or_fail(pickle.dumps(HOSTILE[name](proof_of(tmp_path))))
        assert (tmp_path / "proof").exists(), name
        (tmp_path / "proof").unlink()


def test_unknown_things_are_inert(tmp_path: Path) -> None:
    found = read_bytes(tmp_path, pickle.dumps([os.system, Reduced(os.system, ("true",))], 2))
    assert isinstance(found[0], Global)
    assert found[0].name == "posix.system"
    assert (found[1].name, found[1].args) == ("posix.system", ("true",))
    assert not callable(found[0])
    assert not callable(found[1])


def test_instructions_of_old_protocols_and_those_that_are_refused(tmp_path: Path, harmless: None) -> None:
    command = proof_of(tmp_path).encode()
    for program in (
        b"(S'" + command + b"'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'" + command + b"'\no.",  # OBJ
        b"cos\nsystem\n(S'" + command + b"'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85\x81.",  # NEWOBJ
    ):
        found = read_bytes(tmp_path, program)
        assert isinstance(found, Placeholder)
        assert (found.name, found.args) == ("os.system", (command.decode(),))
    for program in (b"Pos.system\n.", b"\x80\x02U\x01xQ.", b"\x82\x01.", b"\x97.", b"\x98.", b"", b"hello", b"\x80\xff.", b"N", b"."):
        with pytest.raises(InputError):
            read_bytes(tmp_path, program)


@pytest.mark.parametrize(
    "target",
    [
        "ctorch._utils\n_rebuild_tensor_v2\n", "ctorch\nFloatStorage\n", "ctorch\nfloat32\n", "cnumpy\nndarray\n",
        "ccollections\nOrderedDict\n",
        "cos\nsystem\n", "]", ")", "N", "I1\n", "U\x01x",
    ],
)  # fmt: skip
def test_nothing_that_others_share_can_be_changed(target: str, tmp_path: Path) -> None:
    """BUILD, with a dictionary and with attributes to set."""
    before = {name: dict(vars(thing)) for name, thing in (("tensor", torch._utils._rebuild_tensor_v2), ("dict", collections.OrderedDict))}
    for state in (b"}U\x08__call__I1\ns", b"(N}U\x0c__defaults__I1\nst", b"}U\x03numI1\ns"):
        read = target.encode("latin1") + state + b"b."
        with pytest.raises(InputError):
            read_bytes(tmp_path, read)
    assert before == {n: dict(vars(t)) for n, t in (("tensor", torch._utils._rebuild_tensor_v2), ("dict", collections.OrderedDict))}
    assert torch.empty(1, dtype=torch.float32).dtype is torch.float32


def test_a_forged_numpy_type_changes_nothing(tmp_path: Path) -> None:
    """A type's state may say that plain bytes are references to objects: only its byte order is heeded."""
    forged = b"cnumpy\ndtype\n(U\x02O8I0\nI1\ntR(I3\nU\x01|NNNI8\nI1\nI0\ntb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I1\nt" + forged + b"I00\nU\x08AAAAAAAAtb."
    with pytest.raises(InputError, match="objects"):
        read_bytes(tmp_path, array)
    structured = b"cnumpy\ndtype\n(U\x02V8I0\nI1\ntR(I3\nU\x01|NNNI8\nI1\nI63\ntb"
    with pytest.raises(InputError, match="structures"):
        read_bytes(tmp_path, array.replace(forged, structured))
    assert same(read_restricted(written(tmp_path / "y.pkl", np.dtype(">f4"))).order, ">")
    assert np.dtype("f4").byteorder == "="


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Half a gigabyte more than now, at the most."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def array_program(shape: bytes, code: bytes = b"f8", content: bytes = b"U\x00") -> bytes:
    dtype = b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"I0\nI1\ntR"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(" + shape + b"t" + dtype + b"I00\n" + content + b"tb."
    )


BOMBS = {
    "bytes of a number": b"cbuiltins\nbytes\n(I4000000000\ntR.",
    "bytearray of a number": b"cbuiltins\nbytearray\n(I4000000000\ntR.",
    "a long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "a long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "a large shape": array_program(b"I1000000000000\n"),
    "a shape that wraps": array_program(b"I4611686018427387904\nI4\n"),
    "a negative shape": array_program(b"I-1\n"),
    "wide texts": array_program(b"I2\n", b"U999999999"),
    "a size": b"ctorch\nSize\n(I4\ntR.",
    "one text copied": b"\x80\x04(B"
    + struct.pack("<I", 10**6) + bytes(10**6) + b"q\x00" + b"cbuiltins\nbytearray\nh\x00\x85R" * 2000 + b"t.",
    "one list copied": b"\x80\x04(](" + b"N" * 10**5 + b"eq\x00" + b"cbuiltins\nset\nh\x00\x85R" * 2000 + b"t.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_forged_sizes_allocate_nothing(name: str, tmp_path: Path, little_memory: None) -> None:
    with pytest.raises(InputError):
        read_bytes(tmp_path, BOMBS[name])


def test_a_forged_frame_or_place_in_the_memo_allocates_nothing(tmp_path: Path, little_memory: None) -> None:
    """Python's reader in C would make a table of that many places."""
    assert read_bytes(tmp_path, b"\x80\x04Nr\xff\xff\xff\xff.") is None
    assert read_bytes(tmp_path, b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.") is None


def test_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    deep = b"\x80\x04N" + b"\x85" * 100_000
    assert isinstance(read_bytes(tmp_path, deep + b"."), tuple)
    with pytest.raises(InputError, match="in a key"):
        read_bytes(tmp_path, b"\x80\x04}" + deep[2:] + b"Ns.")
    with pytest.raises(InputError, match="in a key"):
        read_bytes(tmp_path, b"\x80\x04(" + deep[2:] + b"\x91.")


def rebuilt(storage: tuple[Any, ...], offset: Any, size: Any, stride: Any) -> bytes:
    """torch's program for one tensor, with a forged storage or view."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return storage if value is marker else None

    marker, buffer = object(), io.BytesIO()
    Pickler(buffer, 2).dump(Reduced(torch._utils._rebuild_tensor_v2, (marker, offset, size, stride, False, collections.OrderedDict())))
    return buffer.getvalue()


def archive(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", program)
        for name, content in records.items():
            file.writestr(f"x/data/{name}", content)
    return path


STORAGE = ("storage", torch.FloatStorage, "k", "cpu", 4)


def test_a_tensor_in_an_archive_made_by_hand(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pth", rebuilt(STORAGE, 1, (3,), (1,)), k=np.arange(4, dtype=np.float32).tobytes())
    assert same(read_restricted(path), torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("storage", "view"),
    [
        (STORAGE, (2, (3,), (1,))),
        (STORAGE, (0, (2, 2), (1, 3))),
        (STORAGE, (-1, (2,), (1,))),
        (STORAGE, (0, (2,), (-1,))),
        (STORAGE, (0, (2,), (2**62,))),
        (STORAGE, (0, (2**40,), (0,))),
        (STORAGE, (0, (2**61, 8), (0, 0))),
        (STORAGE, (0, (4,), (1, 1))),
        (STORAGE, ("0", (4,), (1,))),
        ((*STORAGE[:4], 5), (0, (4,), (1,))),
        ((*STORAGE[:4], 2**60), (0, (4,), (1,))),
        ((*STORAGE[:4], -4), (0, (4,), (1,))),
        (("storage", torch.DoubleStorage, "k", "cpu", 4), (0, (4,), (1,))),
        (("storage", os.system, "k", "cpu", 4), (0, (4,), (1,))),
        (("storage", torch.FloatStorage, "../../etc/passwd", "cpu", 4), (0, (4,), (1,))),
        (("storage", torch.FloatStorage, "/etc/passwd", "cpu", 4), (0, (4,), (1,))),
        (("storage", torch.FloatStorage, 5, "cpu", 4), (0, (4,), (1,))),
        (("module", "os", "k", "cpu", 4), (0, (4,), (1,))),
        (("storage",), (0, (4,), (1,))),
    ],
)  # fmt: skip
def test_tensors_beyond_their_storage_are_refused(
    storage: tuple[Any, ...], view: tuple[Any, ...], tmp_path: Path, little_memory: None
) -> None:
    content = np.arange(4, dtype=np.float32).tobytes()
    with pytest.raises(InputError):
        read_restricted(archive(tmp_path / "x.pth", rebuilt(storage, *view), k=content))
    magic = [0x1950A86A20F9469CFC6C, 1001, {}]
    older = b"".join(pickle.dumps(part, 2) for part in magic) + rebuilt((*storage, None), *view) + pickle.dumps(["k"], 2)
    with pytest.raises(InputError):
        read_bytes(tmp_path, older + struct.pack("<q", 4) + content)


def test_archives_that_are_none_of_torchs(tmp_path: Path, little_memory: None) -> None:
    path = tmp_path / "x.pth"
    content = bytes(16)
    good = rebuilt(STORAGE, 0, (4,), (1,))
    with pytest.raises(InputError, match="compressed"):
        read_restricted(archive(path, good + bytes(10**6), zipfile.ZIP_DEFLATED, k=content))
    with pytest.raises(InputError):
        read_restricted(archive(path, good))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("other/thing.txt", "hello")
    with pytest.raises(InputError, match="not an archive of torch's"):
        read_restricted(path)
    whole = archive(path, good, k=content).read_bytes()
    for cut in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError):
            read_restricted(path)


@settings(max_examples=100)
@given(st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed at random: no other error than ours, and no crash."""
    content = {"a": np.arange(4.0), "b": [1, "x", (2.0, None)], "c": collections.OrderedDict(d=np.float32(1)), "h": History(), "s": {1}}
    program = bytearray(pickle.dumps(content, data.draw(st.sampled_from([0, 2, 4, 5]))))
    for _ in range(data.draw(st.integers(1, 3))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(bytes(program))
    read_or_refuse(path)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(sorted(pickletools.code2op)), max_size=12))
def test_programs_made_at_random_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, codes: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "random.pkl"
    path.write_bytes(b"(cos\nsystem\n}" + "".join(codes).encode("latin1") + b"\x01" * 8 + b".")
    read_or_refuse(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pkl", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            read_restricted(path)
