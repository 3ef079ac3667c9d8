"""The demo: a data set made on the fly goes the whole way, from NIfTI files to a trained, evaluated model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from vsuite.core.errors import InputError
from vsuite.medical.demo_data import make_demo_dataset
from vsuite.medical.evaluation import Evaluation, evaluate_folder
from vsuite.medical.evaluation_files import print_evaluation
from vsuite.medical.inference import Predictor, predict_files
from vsuite.medical.training import resolve_settings, train

PARTS = ("data", "run", "predictions", "evaluation")


def run_demo(out: str | Path, *, seed: int = 0, overwrite: bool = False, say: Callable[[str], None] = print) -> Evaluation:
    """Makes 20 training and 6 test cases, trains a small SegFormer3D for about a minute, predicts and evaluates the test cases.

    Args:
        out: gets the folders `data`, `run`, `predictions` and `evaluation`.
        seed: of the data and the training.
        overwrite: start anew where an earlier demo lies.

    Returns:
        The evaluation on the test cases, which training has not seen.

    Raises:
        InputError: for a folder that holds an earlier demo (without `overwrite`) or cannot be written to.
    """
    out, start = Path(out), time.monotonic()
    data, run, predictions, evaluation = (out / part for part in PARTS)
    earlier = [folder for folder in (data, run, predictions, evaluation) if folder.exists()]
    if earlier and not overwrite:
        raise InputError(f"{out}: holds an earlier demo; --overwrite starts anew")
    for folder in earlier:
        shutil.rmtree(folder)
    say(f"1/4 making phantoms in {data}")
    make_demo_dataset(data, cases=20, test_cases=6, seed=seed)
    say("2/4 training")
    result = train(resolve_settings(data=data, recipe="demo", overrides=[f"training.seed={seed}"]), run, device="cpu", say=say)
    say("3/4 predicting the test cases")
    predict_files(Predictor(result.best_path, device="cpu"), data / "imagesTs", predictions)
    say("4/4 evaluating")
    found = evaluate_folder(predictions, data / "labelsTs", images=data / "imagesTs", out=evaluation)
    print_evaluation(found)
    say(f"mean Dice on cases not trained on: {found.mean_dice:.3f}; {time.monotonic() - start:.0f} s in all")
    say(f"pictures and tables: {evaluation / 'report.html'}, training: {run / 'report.html'}")
    return found
