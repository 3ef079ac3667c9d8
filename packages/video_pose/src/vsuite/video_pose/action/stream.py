"""What people do, said frame by frame while the frames still come in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.video_pose.action.clips import Video, back_and_forth, placed, seen_scores
from vsuite.video_pose.action.samples import as_tensors
from vsuite.video_pose.action.settings import ClipSettings
from vsuite.video_pose.models.lmuformer import LMUFormer
from vsuite.video_pose.skeletons import Skeleton


@dataclass(frozen=True)
class Decision:
    """What a stream thinks.

    Attributes:
        frame: up to which frame of the stream, counted from 0.
        probabilities: K.
    """

    frame: int
    probabilities: NDArray[np.float32]


class ActionStream:
    """Takes poses one frame at a time, and says after each what is being done. Memory does not grow.

    After the frames of one clip, and `finish`, its answer is that of `Predictor.predict` for the clip: the state is exact.

    Args:
        model: an LMUFormer, on the CPU or a GPU.
        window: frames that an answer is about; None takes a clip's. 0: everything since the beginning.
        image_shape: (height, width) of the pictures, for weights that take joints in them.

    Attributes:
        delay: frames by which answers come late; `seconds` of them where the frame rate is known.

    Raises:
        InputError: for models that cannot stream, and clips whose coordinates depend on frames to come.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: list[str],
        layout: Skeleton,
        clip: ClipSettings,
        *,
        window: int | None = None,
        image_shape: tuple[int, int] | None = None,
    ) -> None:
        check_streams(model, clip)
        if clip.coordinates == "picture" and image_shape is None:
            raise InputError("a stream of joints in pixels needs the (height, width) of the pictures")
        assert clip.window is not None
        assert isinstance(model, LMUFormer)
        self.classes, self.layout, self.clip = classes, layout, clip
        self.kept = frozenset(back_and_forth(clip.frames, clip.window, clip.window).tolist())
        samples = clip.frames if window is None else window * clip.frames // clip.window
        self.image_shape = image_shape
        self._stream = model.stream(window=samples or None)
        self._device = next(model.parameters()).device
        self.reset()

    @property
    def delay(self) -> int:
        assert self.clip.window is not None
        return self._stream.delay * self.clip.window // self.clip.frames

    @property
    def seconds(self) -> float | None:
        return self.delay / self.clip.fps if self.clip.fps else None

    def reset(self) -> None:
        """Starts a new stream."""
        self._stream.reset()
        self._count = 0
        self._waiting: list[int] = []

    def push(self, joints: NDArray[np.floating], scores: NDArray[np.floating] | None = None) -> Decision | None:
        """One frame.

        Args:
            joints: J, C of one person or M, J, C. People keep their places; those beyond the model's number are left out.
            scores: J or M, J; see `Video.of`.

        Returns:
            A decision about the frames up to one `delay` earlier, or None where there is none yet, or the model skips this frame.

        Raises:
            InputError: for another shape.
        """
        joints = np.asarray(joints)
        joints, scores = (joints, scores) if joints.ndim == 3 else (joints[None], None if scores is None else np.asarray(scores)[None])
        if joints.ndim != 3 or joints.shape[1:] != (self.layout.num_joints, self.clip.dimensions):
            wanted = f"people, {self.layout.num_joints} joints ({self.layout.name}), {self.clip.dimensions}"
            raise InputError(f"a frame of the stream is {wanted}; got {joints.shape}")
        if scores is not None and np.shape(scores) != joints.shape[:2]:
            raise InputError(f"scores of a frame must be {joints.shape[:2]}, one for each joint; got {np.shape(scores)}")
        number = self._count
        self._count += 1
        assert self.clip.window is not None
        if number % self.clip.window not in self.kept:
            return None
        self._waiting.append(number)
        return self._decision(self._stream.push(self._sample(joints, scores)))

    def finish(self) -> list[Decision]:
        """Ends the stream: the decisions that are still owed. It is ready for another then."""
        answers = self._stream.finish()
        owed = [] if answers is None else [self._decision(answer) for answer in answers.unbind(1)]
        self.reset()
        return [one for one in owed if one is not None]

    def _sample(self, joints: NDArray[np.floating], scores: NDArray[np.floating] | None) -> Tensor:
        found = seen_scores(joints, scores)
        people = self.clip.people
        padded = [(0, max(0, people - len(joints))), (0, 0)]
        placed_at = np.pad(np.where(found[..., None] > 0, joints, 0)[:people], [*padded, (0, 0)])[:, None]
        found = np.pad(found[:people], padded)[:, None]
        frame = Video("stream", placed_at, found, image_shape=self.image_shape)
        return as_tensors("sequence", *placed(frame, np.zeros(1, np.int64), self.clip, self.layout))["sequence"].to(self._device)

    def _decision(self, answer: Tensor | None) -> Decision | None:
        if answer is None:
            return None
        return Decision(self._waiting.pop(0), torch.softmax(answer[0].float(), 0).cpu().numpy())


def check_streams(model: nn.Module, clip: ClipSettings) -> None:
    """Raises `InputError`, which says why, where a model cannot run frame by frame."""
    if not isinstance(model, LMUFormer):
        raise InputError(f"{type(model).__name__} looks at whole clips and does not stream; an LMUFormer does")
    if model.form == "spiking_attention":
        raise InputError("the spiking form with self-attention looks at later frames too and does not stream; the other forms do")
    if clip.window is None:
        raise InputError("these weights take frames from all over a whole video (clip.window is null), so they do not stream")
    if clip.coordinates not in ("picture", "body"):
        raise InputError(
            f"the coordinates {clip.coordinates!r} depend on other frames of a clip, so these weights do not stream; 'body' does"
        )
