"""LR/batch ratio, batch size and momentum: ResNet-56 with BatchNorm on CIFAR-10, natural training.

Kamath, Deshpande and Subrahmanyam 2020, How do SGD hyperparameters in natural training affect
adversarial robustness?, arXiv:2006.11604: with a constant ratio, robustness hardly depends on the
batch size; with a fixed LR it does. The batch size is constant within a trial, so a fixed LR is a
ratio of LR / batch size, and the ratio's range spans both series. Trainings are 10 to 60 epochs
long, so that a study fits on one GPU; the published configurations get 40.
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

LR, BATCH_SIZE = 0.1, 128  # where the two series meet


def constant_ratio(batch_size: int, momentum: float) -> dict[str, object]:
    """LR in proportion to the batch size."""
    return {"batch_size_schedule.size": batch_size, "lr_batch_ratio": LR / BATCH_SIZE} | momentum_and_length(momentum)


def fixed_lr(batch_size: int, momentum: float) -> dict[str, object]:
    """The same LR whatever the batch size."""
    return {"batch_size_schedule.size": batch_size, "lr_batch_ratio": LR / batch_size} | momentum_and_length(momentum)


def momentum_and_length(momentum: float) -> dict[str, object]:
    return {"momentum": momentum, "epochs": 40}


BASELINES = {
    "constant ratio 8": constant_ratio(8, momentum=0.0),
    "constant ratio 32": constant_ratio(32, momentum=0.0),
    "constant ratio 128": constant_ratio(128, momentum=0.0),
    "constant ratio 512": constant_ratio(512, momentum=0.0),
    "fixed LR 8": fixed_lr(8, momentum=0.0),
    "fixed LR 32": fixed_lr(32, momentum=0.0),
    "fixed LR 512": fixed_lr(512, momentum=0.0),
    "constant ratio 32, momentum": constant_ratio(32, momentum=0.9),
    "constant ratio 512, momentum": constant_ratio(512, momentum=0.9),
    "fixed LR 32, momentum": fixed_lr(32, momentum=0.9),
    "fixed LR 512, momentum": fixed_lr(512, momentum=0.9),
}


def space(trial: optuna.Trial) -> dict[str, object]:
    """Batch size, LR/batch ratio, momentum and length; returns the constants."""
    trial.suggest_categorical("batch_size_schedule.size", [8, 16, 32, 64, 128, 256, 512])
    trial.suggest_float("lr_batch_ratio", 1e-4, 2e-2, log=True)
    trial.suggest_categorical("momentum", [0.0, 0.9])
    trial.suggest_int("epochs", 10, 60)
    return {"batch_size_schedule.kind": "constant", "norm": "batchnorm", "weight_decay": 5e-4}
