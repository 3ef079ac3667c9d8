"""The evaluator: means without NaNs, samples of several processes counted once, files that others can read."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsuite.core import InputError
from vsuite.core.evaluation import Evaluator, Metric, create_metric, list_metrics, print_table, register_metric, write_csv, write_json
from vsuite.core.evaluation.evaluator import EvaluationResult


@register_metric("test_error")
class AbsoluteError(Metric):
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def measure(self, *, prediction: float, reference: float, **_: Any) -> dict[str, float]:
        return {"error": self.scale * abs(prediction - reference)}


class Largest(Metric):
    def measure(self, *, prediction: float, **_: Any) -> dict[str, float]:
        return {"value": prediction}

    def summarise(self, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {"largest": max(row["value"] for row in rows)}


def evaluate(errors: Sequence[float]) -> EvaluationResult:
    evaluator = Evaluator(["test_error"])
    for index, error in enumerate(errors):
        evaluator.update(index, f"case{index}", prediction=error, reference=0.0)
    return evaluator.compute()


@given(st.lists(st.floats(0, 1e6) | st.just(math.nan), max_size=20))
def test_mean_leaves_out_what_is_not_defined(errors: list[float]) -> None:
    result = evaluate(errors)
    defined = [error for error in errors if not math.isnan(error)]
    assert len(result.rows) == len(errors)
    if not errors:
        assert result.summary == {}
    elif not defined:
        assert math.isnan(result.summary["error"])
        assert result.counts == {"error": 0}
    else:
        assert result.summary["error"] == pytest.approx(sum(defined) / len(defined))
        assert result.counts == {"error": len(defined)}


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=6))
def test_neither_order_nor_repetition_matters(order: list[int], repeated: list[int]) -> None:
    evaluator = Evaluator(["test_error"])
    for index in order + repeated:
        evaluator.update(index, f"case{index}", prediction=float(index**2), reference=0.0)
    result = evaluator.compute()
    assert [row.index for row in result.rows] == list(range(6))
    assert result.summary["error"] == pytest.approx(55 / 6)
    assert result.counts["error"] == 6


def test_metric_with_a_summary_of_its_own_and_a_second_metric() -> None:
    evaluator = Evaluator([AbsoluteError(scale=2.0), Largest()])
    for index, value in enumerate([3.0, 7.0, 5.0]):
        evaluator.update(index, str(index), prediction=value, reference=1.0)
    result = evaluator.compute()
    assert result.summary == {"error": pytest.approx(8.0), "largest": 7.0}
    assert result.counts == {"error": 3, "largest": 3}
    assert result.rows[1].values == {"error": 12.0, "value": 7.0}


def test_two_metrics_must_not_share_a_column() -> None:
    with pytest.raises(ValueError, match="column error"):
        Evaluator([AbsoluteError(), AbsoluteError(2.0)]).update(0, "a", prediction=1.0, reference=0.0)


def test_two_samples_must_not_share_an_index() -> None:
    evaluator = Evaluator(["test_error"])
    evaluator.update(3, "a", prediction=1.0, reference=0.0)
    with pytest.raises(ValueError, match="'a' and 'b' have the same index 3"):
        evaluator.update(3, "b", prediction=1.0, reference=0.0)


def test_registry_names_the_nearest() -> None:
    assert "test_error" in list_metrics()
    with pytest.raises(InputError, match="did you mean 'test_error'"):
        create_metric("test_eror")
    with pytest.raises(InputError, match="did you mean 'scale'"):
        create_metric("test_error", scal=2.0)
    with pytest.raises(InputError, match="registered twice"):
        register_metric("test_error")(Largest)


def test_files(tmp_path: Path) -> None:
    result = evaluate([0.25, math.nan, math.inf])
    write_json(result, tmp_path / "metrics.json", {"convention": "nnunet"})
    write_csv(result, tmp_path / "metrics.csv")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert content["convention"] == "nnunet"
    assert content["summary"] == {"error": "inf"}
    assert content["counts"] == {"error": 2}
    assert [sample["error"] for sample in content["samples"]] == [0.25, None, "inf"]
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"index": str(i), "name": f"case{i}", "error": e} for i, e in enumerate(["0.25", "", "inf"])]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.json"]


def test_table_says_how_many_samples_entered(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(evaluate([0.5, math.nan, 1.0]), title="held-out cases")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["held-out", "cases"], ["metric", "value", "samples"], ["error", "0.7500", "2", "of", "3"]]


WORKER = """
import sys
from torch import distributed
from vsuite.core.evaluation import Evaluator, Metric

class Value(Metric):
    def measure(self, *, prediction, **_):
        return {"value": prediction}

rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
indices = list(range(37)) + [0]  # padded, as samplers do, so that both processes get 19
evaluator = Evaluator([Value()])
for index in indices[rank::2]:
    evaluator.update(index, f"case{index}", prediction=float(index))
result = evaluator.compute()
print([row.index for row in result.rows] == list(range(37)), result.summary["value"], result.counts["value"])
distributed.destroy_process_group()
"""


def test_two_processes_give_one_result_and_count_padding_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER]
    store = str(tmp_path / "store")
    workers = [subprocess.Popen([*command, str(rank), store], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    outputs = [worker.communicate(timeout=120)[0].strip() for worker in workers]
    assert outputs == ["True 18.0 37"] * 2
