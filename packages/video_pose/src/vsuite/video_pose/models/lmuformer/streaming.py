"""Exact inference sample by sample, with memory that does not grow.

A model is a chain of stages. Most answer each sample at once; a convolution over three samples has to see the next one
first, so it answers one sample late, and at the end of a sequence it sees the zeros that the parallel form pads its own
input with (not the model's: after a norm, zero is not what a zero at the input has become).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.video_pose.models.lmuformer.spiking import LIF


class Stage:
    """One step of a chain. Samples are B, C.

    Attributes:
        delay: samples that it answers late.
    """

    delay = 0

    def push(self, x: Tensor) -> Tensor | None:
        """One sample in; one out, or None while it waits for more."""
        raise NotImplementedError

    def finish(self) -> list[Tensor]:
        """The samples that it still owes when the sequence has ended."""
        return []

    def reset(self) -> None:
        """Forgets everything."""


class Pointwise(Stage):
    """Functions of one sample, applied in order."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        self.functions = functions

    def push(self, x: Tensor) -> Tensor:
        for function in self.functions:
            x = function(x)
        return x


class Fire(Stage):
    """Neurons that keep their potential."""

    def __init__(self, neurons: LIF) -> None:
        self.neurons = neurons
        self.reset()

    def reset(self) -> None:
        self.v: Tensor | None = None

    def push(self, x: Tensor) -> Tensor:
        spikes, self.v = self.neurons.step(x, self.v)
        return spikes


class Convolution(Stage):
    """A convolution over three samples with zeros beyond both ends."""

    delay = 1

    def __init__(self, conv: nn.Conv1d) -> None:
        self.weight, self.bias = side_by_side(conv), conv.bias
        self.reset()

    def reset(self) -> None:
        self.before: tuple[Tensor, Tensor] | None = None

    def push(self, x: Tensor) -> Tensor | None:
        if self.before is None:
            self.before = torch.zeros_like(x), x
            return None
        first, second = self.before
        self.before = second, x
        return F.linear(torch.cat([first, second, x], 1), self.weight, self.bias)

    def finish(self) -> list[Tensor]:
        if self.before is None:
            return []
        last = self.push(torch.zeros_like(self.before[1]))
        return [] if last is None else [last]


class Chain(Stage):
    """Stages one after the other."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages = list(stages)
        self.delay = sum(stage.delay for stage in self.stages)

    def reset(self) -> None:
        for stage in self.stages:
            stage.reset()

    def push(self, x: Tensor) -> Tensor | None:
        return self._push_from(0, x)

    def finish(self) -> list[Tensor]:
        owed: list[Tensor] = []
        for i, stage in enumerate(self.stages):  # in order: what an early stage owes passes through the later ones first
            owed += [y for y in (self._push_from(i + 1, x) for x in stage.finish()) if y is not None]
        return owed

    def _push_from(self, start: int, x: Tensor) -> Tensor | None:
        for stage in self.stages[start:]:
            answer = stage.push(x)
            if answer is None:
                return None
            x = answer
        return x


class Residual(Chain):
    """x + stages(x); x waits for as long as the stages are late."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        super().__init__(stages)
        self.waiting: deque[Tensor] = deque()

    def reset(self) -> None:
        super().reset()
        self.waiting.clear()

    def push(self, x: Tensor) -> Tensor | None:
        self.waiting.append(x)
        y = super().push(x)
        return None if y is None else self.waiting.popleft() + y

    def finish(self) -> list[Tensor]:
        return [self.waiting.popleft() + y for y in super().finish()]


class Stream:
    """A model that takes a sequence frame by frame and says after each one what it thinks of the sequence so far.

    What it says after sample t is the model's output for the mean of the features of samples 0 to t: the last answer equals
    the model's for the whole sequence. State is of constant size, whatever the length of the sequence. Weights are those
    of the moment the stream was made. Made by `LMUFormer.stream` and `PermutedMNIST.stream`.

    Attributes:
        delay: samples that answers come late: the look-ahead of the convolutions (five in LMUFormer, and none in the
            memory). The answer for sample t comes with sample t + delay, or from `finish`.
        window: of how many of the last samples the mean is taken; None: of all since the beginning.
    """

    def __init__(self, stages: Sequence[Stage], head: Callable[[Tensor], Tensor], *, in_channels: int, window: int | None = None) -> None:
        if window is not None and window < 1:
            raise InputError(f"the window of a stream must be 1 or more samples, or None for all; got {window}")
        self._chain = Chain(stages)
        self._head = head
        self._in_channels = in_channels
        self.window = window
        self.delay = self._chain.delay
        self.reset()

    def reset(self) -> None:
        """Starts a new sequence."""
        self._chain.reset()
        self._batch: int | None = None
        self._count = 0
        self._mean: Tensor | None = None
        self._recent: deque[Tensor] = deque(maxlen=self.window or 0)

    @torch.inference_mode()
    def push(self, frame: Tensor) -> Tensor | None:
        """One frame of each sequence of the batch.

        Args:
            frame: B, in_channels (or B, J, C with J * C channels).

        Returns:
            B, num_classes: the answer for the frame `delay` samples ago; None for the first `delay` frames.

        Raises:
            InputError: for another shape than before, and for NaN or infinite values.
        """
        x = frame.flatten(1) if frame.ndim > 1 else frame
        if x.ndim != 2 or x.shape[1] != self._in_channels or self._batch not in (None, len(x)) or not len(x):
            batch = "B" if self._batch is None else self._batch
            raise InputError(f"the stream takes frames of {batch}, {self._in_channels}; got {tuple(frame.shape)}")
        if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
            raise InputError("the stream takes finite floating-point frames; got NaN, infinite values or integers")
        self._batch = len(x)
        return self._answer(self._chain.push(x.clone()))  # the caller's buffer may hold another frame by the next call

    def push_chunk(self, frames: Tensor) -> Tensor | None:
        """Several frames at once. frames: B, T, in_channels (or B, T, J, C) -> B, T', num_classes; None if T' is 0."""
        return _joined(self.push(frame) for frame in frames.unbind(1))

    @torch.inference_mode()
    def finish(self) -> Tensor | None:
        """Ends the sequence, and is ready for another.

        Returns:
            B, T', num_classes: the answers for the last `delay` frames (for all, if there were fewer; None if there was
            none or `delay` is 0). The very last answer is the model's output for the sequence.
        """
        answers = _joined(self._answer(x) for x in self._chain.finish())
        self.reset()
        return answers

    def _answer(self, features: Tensor | None) -> Tensor | None:
        if features is None:
            return None
        if self.window is not None:
            self._recent.append(features)
            return self._head(torch.stack(tuple(self._recent)).mean(0))
        self._count += 1
        self._mean = features if self._mean is None else self._mean + (features - self._mean) / self._count
        return self._head(self._mean)


def _joined(answers: Iterable[Tensor | None]) -> Tensor | None:
    found = [answer for answer in answers if answer is not None]
    return torch.stack(found, 1) if found else None


def side_by_side(conv: nn.Conv1d) -> Tensor:
    """The weight of a convolution over three samples as a matrix for the three written one after the other: out, 3 in."""
    return conv.weight.transpose(1, 2).flatten(1)
