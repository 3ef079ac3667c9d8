from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vsuite.core import InputError
from vsuite.core.errors import unknown


def test_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_unknown_suggests_the_nearest() -> None:
    assert str(unknown("model", "segfromer3d", ["segformer3d", "swin_tiny"])) == "unknown model 'segfromer3d'; did you mean 'segformer3d'?"


def test_unknown_lists_what_there_is_where_nothing_is_near() -> None:
    assert str(unknown("task", "zzz", ["segmentation", "detection"])) == "unknown task 'zzz'; there is detection, segmentation"
    assert str(unknown("task", "zzz", [])) == "unknown task 'zzz'; there is none"
    assert str(unknown("model", "?", [f"m{i:02}" for i in range(30)])).endswith("m18, m19, ...")


@given(st.text(max_size=20), st.lists(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), max_size=40))
def test_unknown_is_one_line(given_name: str, names: list[str]) -> None:
    assert len(str(unknown("option", given_name, names)).splitlines()) == 1
