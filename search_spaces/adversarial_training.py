"""Recipes of adversarial training and LR schedules: ResNet-56 on CIFAR-10, attacked within 8/255.

Nikfam, Marchisio, Martina and Shafique 2022, AccelAT, arXiv:2210.06888: an LR that follows the
accuracy's gradient, against other schedules. Batches of 128 and 50 epochs are those of the authors'
code; it fine-tunes ImageNet's weights without momentum, and here networks start from scratch with
LR 0.1 and momentum 0.9. Beside them stand the quicker recipes, with the largest LR, the epochs and
the replays of Wong, Rice and Kolter 2020, arXiv:2001.03994, and, for TRADES, the steps and beta of
Zhang et al. 2019, arXiv:1901.08573; the shapes of their LR schedules and the weight decay are ours.
Trainings are 10 to 50 epochs long, so that a study fits on one GPU.

Training uses the norm and the radius that the study attacks with, `--attack-norm` and `--eps`.
"""

import optuna

DEFAULTS = {
    "dataset": "cifar10",
    "depth": 56,
    "eps": 8 / 255,
    "attack_steps": 20,
    "eval_examples": 1000,
    "trials": 60,
}

SHARED = {"norm": "batchnorm", "batch_size_schedule.size": 128, "lr_batch_ratio": 0.1 / 128}
PGD = {**SHARED, "training": "pgd", "pgd_steps": 7, "epochs": 50}

BASELINES = {
    "PGD, AccelAT": {**PGD, "lr_schedule": "accelat"},
    "PGD, constant": {**PGD, "lr_schedule": "constant"},
    "PGD, multistep": {**PGD, "lr_schedule": "multistep"},
    "PGD, exponential": {**PGD, "lr_schedule": "exponential"},
    "PGD, one cycle": {**PGD, "lr_schedule": "onecycle"},
    "FGSM": {**SHARED, "lr_batch_ratio": 0.2 / 128, "training": "fgsm", "lr_schedule": "onecycle", "epochs": 15},
    "Free": {**SHARED, "lr_batch_ratio": 0.04 / 128, "training": "free", "free_replays": 8}
    | {"lr_schedule": "onecycle", "epochs": 10},
    "TRADES": {**SHARED, "training": "trades", "pgd_steps": 10, "trades_beta": 6.0}
    | {"lr_schedule": "multistep", "epochs": 50},
}


def space(trial: optuna.Trial) -> dict[str, object]:
    """Recipe, LR schedule, norm, batch size, LR/batch ratio and length; returns the constants."""
    training = trial.suggest_categorical("training", ["pgd", "fgsm", "free", "trades"])
    if training in ("pgd", "trades"):
        trial.suggest_int("pgd_steps", 2, 10)
    if training == "trades":
        trial.suggest_float("trades_beta", 1.0, 10.0)
    if training == "free":
        trial.suggest_int("free_replays", 2, 8)
    trial.suggest_categorical("lr_schedule", ["constant", "multistep", "cosine", "onecycle", "exponential", "accelat"])
    trial.suggest_categorical("norm", ["batchnorm", "groupnorm", "fixup"])
    trial.suggest_categorical("batch_size_schedule.size", [32, 64, 128, 256])
    trial.suggest_float("lr_batch_ratio", 1e-4, 5e-3, log=True)
    trial.suggest_int("epochs", 10, 50)
    return {"batch_size_schedule.kind": "constant", "momentum": 0.9, "weight_decay": 5e-4}
