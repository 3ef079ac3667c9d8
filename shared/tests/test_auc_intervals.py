"""Bootstrap intervals of the AUC."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.core.images import metrics
from vsuite.core.images.metrics import auc_intervals, classification_metrics, roc_auc


def table(number: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((number, 3)) < (0.5, 0.3, 0.05)
    return np.round(rng.random((number, 3)) + 0.4 * truth, 2), truth


@settings(max_examples=50, deadline=None)
@given(number=st.integers(2, 30), levels=st.integers(1, 6), seed=st.integers(0, 1000))
def test_counting_images_twice_is_drawing_them_twice(number: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, levels, number) / levels, rng.random(number) < 0.5
    times = rng.integers(0, 4, number)
    order, starts = metrics._score_order(scores)
    found = metrics._weighted_auc(order, starts, truth, times)
    wanted = roc_auc(np.repeat(scores, times), np.repeat(truth, times))
    assert found == pytest.approx(wanted, nan_ok=True)


def test_intervals_hold_the_value_and_widen_with_the_level() -> None:
    scores, truth = table()
    values = classification_metrics(scores, truth, list("abc"), multi_label=True)
    narrow = auc_intervals(scores, truth, list("abc"), level=0.5, resamples=300)
    wide = auc_intervals(scores, truth, list("abc"), level=0.95, resamples=300)
    assert set(wide) == {"auc", "auc/a", "auc/b", "auc/c"}
    for name, interval in wide.items():
        assert interval.low < narrow[name].low <= values[name] <= narrow[name].high < interval.high
    assert wide["auc/c"].high - wide["auc/c"].low > wide["auc/a"].high - wide["auc/a"].low  # few positives


def test_width_is_that_of_the_theory() -> None:
    """Hanley and McNeil's standard error, which holds for large samples."""
    rng = np.random.default_rng(1)
    truth = np.arange(1000) < 300
    scores = rng.normal(size=1000) + truth
    auc = roc_auc(scores, truth)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = math.sqrt((auc * (1 - auc) + 299 * (q1 - auc**2) + 699 * (q2 - auc**2)) / (300 * 700))
    interval = auc_intervals(scores[:, None], truth[:, None], ["a"], resamples=1000)["auc/a"]
    assert (interval.high - interval.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_images_of_one_patient_are_drawn_together() -> None:
    scores, truth = table()
    tenfold = np.repeat(scores, 10, axis=0), np.repeat(truth, 10, axis=0)
    patients = [f"patient {i}" for i in range(400) for _ in range(10)]
    alone = auc_intervals(scores, truth, list("abc"), resamples=50)
    together = auc_intervals(*tenfold, list("abc"), groups=patients, resamples=50)
    apart = auc_intervals(*tenfold, list("abc"), resamples=50)
    assert together == alone
    assert apart["auc"].high - apart["auc"].low < 0.6 * (alone["auc"].high - alone["auc"].low)


def test_same_seed_same_intervals() -> None:
    scores, truth = table()
    first, again, other = (auc_intervals(scores, truth, list("abc"), resamples=40, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_finding_that_nobody_has_is_left_out() -> None:
    scores, truth = table()
    truth[:, 1] = False
    found = auc_intervals(scores, truth, list("abc"), resamples=50)
    assert math.isnan(found["auc/b"].low)
    assert math.isnan(found["auc/b"].high)
    without = auc_intervals(scores[:, [0, 2]], truth[:, [0, 2]], list("ac"), resamples=50)
    assert found["auc"] == without["auc"]
    nothing = auc_intervals(scores, np.zeros_like(truth), list("abc"), resamples=5)
    assert math.isnan(nothing["auc"].low)


def test_wrong_arguments() -> None:
    scores, truth = table(10)
    with pytest.raises(InputError, match="one shape N, 3"):
        auc_intervals(scores, truth[:, :2], list("abc"))
    with pytest.raises(InputError, match="one shape N, 2"):
        auc_intervals(scores, truth, list("ab"))
    with pytest.raises(InputError, match=r"level must lie in \(0, 1\)"):
        auc_intervals(scores, truth, list("abc"), level=95)
    with pytest.raises(InputError, match="one entry an image: 10; got 9"):
        auc_intervals(scores, truth, list("abc"), groups=range(9))
