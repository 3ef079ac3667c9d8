"""Classification of medical pictures: the core's image classification with medical formats, data sets and recipes.

settings = resolve_settings(data="ChestX-ray14", recipe="chestxray14_vit_s", weights="runs/pretraining")
result = train(settings, "runs/chest")
evaluate(Predictor(result.best_path), "ChestX-ray14", split="test", out="evaluation").summary["auc"]
"""

from vsuite.core.images.predictor import Predictor
from vsuite.medical.classification.datasets import FINDINGS, read_dataset
from vsuite.medical.classification.evaluation import evaluate
from vsuite.medical.classification.training import list_recipes, load_recipe, resolve_settings, train

__all__ = ["FINDINGS", "Predictor", "evaluate", "list_recipes", "load_recipe", "read_dataset", "resolve_settings", "train"]
