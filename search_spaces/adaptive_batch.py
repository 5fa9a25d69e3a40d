"""Batch-size schedules, with BatchNorm and without: ResNet-56 on CIFAR-10, natural training.

Sasongko, Krisnadhi and Fanany 2021, Reducing Adversarial Vulnerability through Adaptive Training
Batch Size, doi:10.21609/jiki.v14i1.907: Fixup instead of BatchNorm, and batches that grow from 8 to
128 in equal stages. Trainings are 10 to 60 epochs long, so that a study fits on one GPU; the
published configurations get 40, eight for each of the five stages.
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

SHARED = {"lr_batch_ratio": 0.1 / 128, "epochs": 40}
CONSTANT_8 = {"batch_size_schedule.kind": "constant", "batch_size_schedule.size": 8}
CONSTANT_128 = {"batch_size_schedule.kind": "constant", "batch_size_schedule.size": 128}
GROWING = {"batch_size_schedule.kind": "geometric", "batch_size_schedule.first": 8, "batch_size_schedule.last": 128}
GROWING |= {"lr_follows_batch": True}

BASELINES = {
    "BatchNorm 128": {**SHARED, "norm": "batchnorm", **CONSTANT_128},
    "BatchNorm 8": {**SHARED, "norm": "batchnorm", **CONSTANT_8},
    "BatchNorm 8→128": {**SHARED, "norm": "batchnorm", **GROWING},
    "Fixup 128": {**SHARED, "norm": "fixup", **CONSTANT_128},
    "Fixup 8": {**SHARED, "norm": "fixup", **CONSTANT_8},
    "Fixup 8→128": {**SHARED, "norm": "fixup", **GROWING},
}


def space(trial: optuna.Trial) -> dict[str, object]:
    """Norm, batch-size schedule, LR/batch ratio and length; returns the constants."""
    trial.suggest_categorical("norm", ["batchnorm", "fixup"])
    kind = trial.suggest_categorical("batch_size_schedule.kind", ["constant", "geometric", "linear", "plateau"])
    if kind == "constant":
        trial.suggest_categorical("batch_size_schedule.size", [8, 16, 32, 64, 128, 256])
    else:
        trial.suggest_categorical("batch_size_schedule.first", [8, 16, 32, 64])
        trial.suggest_categorical("batch_size_schedule.last", [64, 128, 256, 512])
        trial.suggest_categorical("lr_follows_batch", [True, False])
    if kind == "plateau":
        trial.suggest_int("batch_size_schedule.patience", 1, 5)
    trial.suggest_float("lr_batch_ratio", 1e-4, 5e-3, log=True)
    trial.suggest_int("epochs", 10, 60)
    return {"momentum": 0.9, "weight_decay": 5e-4}
