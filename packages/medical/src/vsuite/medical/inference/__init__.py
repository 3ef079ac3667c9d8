"""From images to label maps: windows, the way back to the file's grid, and batches of files."""

from vsuite.medical.inference.files import find_cases, predict_files
from vsuite.medical.inference.postprocess import keep_largest_component, remove_small_components
from vsuite.medical.inference.predictor import Prediction, Predictor
from vsuite.medical.inference.restore import restore_label
from vsuite.medical.inference.sliding_window import sliding_window, stream_slabs

__all__ = [
    "Prediction",
    "Predictor",
    "find_cases",
    "keep_largest_component",
    "predict_files",
    "remove_small_components",
    "restore_label",
    "sliding_window",
    "stream_slabs",
]
