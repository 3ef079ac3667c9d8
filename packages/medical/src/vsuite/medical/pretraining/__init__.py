"""Self-supervised pre-training with masked autoencoders on pictures, or on slices of volumes, without labels.

    settings = resolve_settings(data="pictures", recipe="chestxray14_mae_vit_s")
    result = train(settings, "runs/pretraining")

Its run folder is what `--weights` of a classification training takes.
"""

from vsuite.medical.pretraining.training import PretrainingSettings, RunSettings, list_recipes, load_recipe, resolve_settings, train

__all__ = ["PretrainingSettings", "RunSettings", "list_recipes", "load_recipe", "resolve_settings", "train"]
