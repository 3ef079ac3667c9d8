"""Few-shot classification, the usual protocol: n classes with m shapes each to learn from, 20 unseen ones each to classify."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vsuite.core.errors import InputError


@dataclass(frozen=True)
class Episode:
    """One draw: which shapes a network learns from, and on which it is scored.

    Attributes:
        classes: the n classes drawn; class `classes[i]` has the label i within the episode.
        train: indices of the n * m shapes to learn from. train_labels: 0 to n - 1.
        test: indices of the shapes to classify, none of them in `train`. test_labels: 0 to n - 1.
    """

    classes: tuple[int, ...]
    train: NDArray[np.int64]
    train_labels: NDArray[np.int64]
    test: NDArray[np.int64]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy of each episode, 0 to 1; their mean and standard deviation (of the population; over 10 episodes as a rule)."""

    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        return statistics.pstdev(self.accuracies)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f} % over {len(self.accuracies)} episodes"


def sample_episodes(
    labels: ArrayLike, *, ways: int = 5, shots: int = 10, queries: int = 20, episodes: int = 10, seed: int = 0
) -> list[Episode]:
    """Draws episodes; episode i depends on the labels, the sizes and (seed, i) alone.

    Args:
        labels: class of each shape of a data set.
        ways: n, classes an episode (5 or 10 as published). shots: m, shapes a class to learn from (10 or 20).
        queries: unseen shapes a class. episodes: how many.

    Raises:
        InputError: where fewer than `ways` classes have shots + queries shapes.
    """
    values = np.asarray(labels)
    if min(ways - 1, shots, queries, episodes) < 1:
        raise InputError(f"few-shot takes 2 or more ways, and 1 or more of the others; got {ways}, {shots}, {queries}, {episodes}")
    members = {int(kind): np.flatnonzero(values == kind) for kind in np.unique(values)}
    large = [kind for kind, own in members.items() if len(own) >= shots + queries]
    if len(large) < ways:
        raise InputError(f"{ways}-way {shots}-shot needs {ways} classes of {shots + queries} shapes or more; there are {len(large)}")
    return [_draw(members, large, ways, shots, queries, np.random.default_rng([seed, i])) for i in range(episodes)]


def _draw(
    members: dict[int, NDArray[np.int64]], kinds: Sequence[int], ways: int, shots: int, queries: int, generator: np.random.Generator
) -> Episode:
    classes = [int(kind) for kind in generator.choice(kinds, ways, replace=False)]
    drawn = np.stack([generator.choice(members[kind], shots + queries, replace=False) for kind in classes])
    labels = np.arange(ways)
    return Episode(tuple(classes), drawn[:, :shots].ravel(), labels.repeat(shots), drawn[:, shots:].ravel(), labels.repeat(queries))


def evaluate_few_shot(episodes: Sequence[Episode], predict: Callable[[Episode], ArrayLike]) -> FewShotResult:
    """Scores a way of learning on episodes.

    Args:
        episodes: from `sample_episodes`.
        predict: trains a network from scratch on the episode's `train` shapes and returns its labels (0 to n - 1) for the
            `test` shapes, in their order.
    """
    accuracies = []
    for episode in episodes:
        predicted = np.asarray(predict(episode))
        if predicted.shape != episode.test_labels.shape:
            raise InputError(f"predict must return {len(episode.test_labels)} labels, one a test shape; got {predicted.shape}")
        accuracies.append(float((predicted == episode.test_labels).mean()))
    return FewShotResult(tuple(accuracies))
