"""Normalisations, and whose statistics they use at inference: ResNet-56 on CIFAR-10, natural training.

Awais, Shamshad and Bae 2020, Towards an Adversarially Robust Normalization Approach,
arXiv:2006.11007. LR 0.1, batches of 128, the weight decay and two cuts of the LR by ten are those of
the authors' code; trainings are 10 to 60 epochs long instead of 164, so that a study fits on one
GPU, and the published configurations get 40.
"""

import optuna

# 0.03 on standardised images, whose deviation is about 0.2, is about 1.5/255 here.
DEFAULTS = {
    "dataset": "cifar10",
    "depth": 56,
    "eps": 1.5 / 255,
    "attack_steps": 10,
    "eval_examples": 1000,
    "trials": 60,
}

SHARED = {"batch_size_schedule.size": 128, "lr_batch_ratio": 0.1 / 128, "epochs": 40}

BASELINES = {
    "BatchNorm": {**SHARED, "norm": "batchnorm", "eval_statistics": "population"},
    "BatchNorm, batch statistics": {**SHARED, "norm": "batchnorm", "eval_statistics": "batch"},
    "RobustNorm": {**SHARED, "norm": "robustnorm", "eval_statistics": "batch"},
    "RobustNorm, population statistics": {**SHARED, "norm": "robustnorm", "eval_statistics": "population"},
    "Fixup": {**SHARED, "norm": "fixup"},
}


def space(trial: optuna.Trial) -> dict[str, object]:
    """Norm and its statistics, batch size, LR/batch ratio and length; returns the constants."""
    norm = trial.suggest_categorical("norm", ["batchnorm", "robustnorm", "groupnorm", "fixup"])
    if norm in ("batchnorm", "robustnorm"):
        trial.suggest_categorical("eval_statistics", ["population", "batch"])
    trial.suggest_categorical("batch_size_schedule.size", [32, 64, 128, 256])
    trial.suggest_float("lr_batch_ratio", 1e-4, 5e-3, log=True)
    trial.suggest_int("epochs", 10, 60)
    return {
        "batch_size_schedule.kind": "constant",
        "lr_schedule": "multistep",
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
