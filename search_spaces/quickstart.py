"""Batch-size schedule, LR/batch ratio, norm and length, sized for minutes on two CPU cores.

Anchored by the configurations that Sasongko, Krisnadhi and Fanany 2021 compare.
"""

import optuna

DEFAULTS = {"dataset": "digits", "depth": 56, "eps": 0.1, "attack_steps": 10, "eval_examples": 300, "trials": 16}

# The ratio is the largest of a few at which the norm trains a ResNet-56 on digits in ten epochs.
BATCHNORM = {"norm": "batchnorm", "lr_batch_ratio": 3e-4, "momentum": 0.9, "epochs": 10}
FIXUP = {"norm": "fixup", "lr_batch_ratio": 1e-3, "momentum": 0.9, "epochs": 10}

BASELINES = {
    "BatchNorm 128": BATCHNORM | {"batch_size_schedule.kind": "constant", "batch_size_schedule.size": 128},
    "Fixup 128": FIXUP | {"batch_size_schedule.kind": "constant", "batch_size_schedule.size": 128},
    "Fixup 8": FIXUP | {"batch_size_schedule.kind": "constant", "batch_size_schedule.size": 8},
    "Fixup 8→128": FIXUP
    | {"batch_size_schedule.kind": "geometric", "batch_size_schedule.first": 8, "lr_follows_batch": True},
}


def space(trial: optuna.Trial) -> dict[str, object]:
    """What varies; returns the constants."""
    constants: dict[str, object] = {"weight_decay": 5e-4, "lr_schedule": "cosine"}
    if trial.suggest_categorical("batch_size_schedule.kind", ["constant", "geometric"]) == "constant":
        trial.suggest_categorical("batch_size_schedule.size", [8, 16, 32, 64, 128])
    else:
        trial.suggest_categorical("batch_size_schedule.first", [8, 16, 32])
        trial.suggest_categorical("lr_follows_batch", [True, False])
        constants["batch_size_schedule.last"] = 128
    trial.suggest_float("lr_batch_ratio", 2e-4, 3e-3, log=True)
    trial.suggest_categorical("norm", ["batchnorm", "fixup", "robustnorm", "groupnorm"])
    trial.suggest_float("momentum", 0.5, 0.95)
    trial.suggest_int("epochs", 4, 12)
    return constants
