"""Which joints in which frames a decision looked at, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsuite.core.files import atomic_path
from vsuite.video_pose.skeletons import Skeleton

PAPER, INK, BAR = "#101214", "#e6e6e6", "#2dd48b"


def attention_picture(
    attention: NDArray[np.floating], frames: NDArray[np.integer], layout: Skeleton, path: str | Path, *, title: str = ""
) -> None:
    """Writes a PNG: joints down, frames across, the share of the attention as a shade; beside and above it the sums.

    Args:
        attention: M, T, J; people are added up.
        frames: T, of the video.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = np.asarray(attention).sum(0).T  # J, T
    figure = Figure(figsize=(9, 1.6 + 0.24 * len(shares)), dpi=100, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(1, 5))
    above, middle, beside = (figure.add_subplot(grid[place]) for place in ((0, 0), (1, 0), (1, 1)))
    for axes in (above, middle, beside):
        axes.set_facecolor(PAPER)
        axes.tick_params(colors=INK, labelsize=8)
        for spine in axes.spines.values():
            spine.set_visible(False)
    middle.imshow(shares, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    middle.set_yticks(range(layout.num_joints), [name.replace("_", " ") for name in layout.names], parse_math=False)
    ticks = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), 9)).round().astype(int))
    middle.set_xticks(ticks, [str(frames[i]) for i in ticks])
    middle.set_xlabel("frame", color=INK)
    above.bar(np.arange(len(frames)), shares.sum(0), color=BAR, width=0.9)
    above.set_xlim(middle.get_xlim())
    above.set_xticks([])
    above.set_title(title, color=INK, fontsize=10, parse_math=False)
    beside.barh(np.arange(len(shares)), shares.sum(1), color=BAR, height=0.8)
    beside.set_ylim(middle.get_ylim())
    beside.set_yticks([])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=PAPER)
