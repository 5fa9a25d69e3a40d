"""Everything at once: batch-size schedule, LR, optimiser, norm and training of ResNet-56 on CIFAR-10.

Brings together the methods of four papers, each with its proposal among the starting points:
Sasongko et al. 2021 (doi:10.21609/jiki.v14i1.907), Kamath et al. 2020 (arXiv:2006.11604), Awais et
al. 2020 (arXiv:2006.11007) and Nikfam et al. 2022 (arXiv:2210.06888). Trainings are 10 to 60 epochs
long, fewer than the papers', so that a study fits on one GPU. Adversarial training uses the norm
and the radius that the study attacks with, `--attack-norm` and `--eps`, and each recipe's own step size.
"""

import optuna

DEFAULTS = {
    "dataset": "cifar10",
    "depth": 56,
    "eps": 8 / 255,
    "attack_steps": 20,
    "eval_examples": 1000,
    "trials": 200,
}

CONSTANT_128 = {"batch_size_schedule.kind": "constant", "batch_size_schedule.size": 128}
GROWING = {"batch_size_schedule.kind": "geometric", "batch_size_schedule.first": 8, "batch_size_schedule.last": 128}
GROWING |= {"batch_size_schedule.factor": 2, "lr_follows_batch": True}
MOMENTUM = {"momentum": 0.9, "nesterov": False, "weight_decay": 5e-4}
BATCHNORM = {"norm": "batchnorm", "eval_statistics": "population"}
SHARED = {"lr_batch_ratio": 0.1 / 128, "epochs": 40}
NATURAL = {**SHARED, "training": "natural", "lr_schedule": "constant"}

BASELINES = {
    "BatchNorm 128": {**NATURAL, **CONSTANT_128, **MOMENTUM, **BATCHNORM},
    "Fixup 8→128": {**NATURAL, **GROWING, **MOMENTUM, "norm": "fixup"},
    "constant ratio 512": {**NATURAL, **BATCHNORM, "momentum": 0.0, "weight_decay": 5e-4}
    | {"batch_size_schedule.kind": "constant", "batch_size_schedule.size": 512},
    "RobustNorm": {**NATURAL, **CONSTANT_128, **MOMENTUM, "norm": "robustnorm", "eval_statistics": "batch"}
    | {"lr_schedule": "multistep", "weight_decay": 1e-4},
    "PGD, AccelAT": {**SHARED, **CONSTANT_128, **MOMENTUM, **BATCHNORM}
    | {"training": "pgd", "pgd_steps": 7, "lr_schedule": "accelat"},
}


def space(trial: optuna.Trial) -> dict[str, object]:
    """All that may vary; returns what is constant under the choices made."""
    epochs = trial.suggest_int("epochs", 10, 60)
    training = suggest_training(trial)
    norm = suggest_norm(trial, training)
    suggest_optimizer(trial)
    return norm | suggest_batch_sizes(trial, epochs)


def suggest_training(trial: optuna.Trial) -> str:
    training = trial.suggest_categorical("training", ["natural", "pgd", "fgsm", "free", "trades", "static"])
    if training in ("pgd", "trades", "static"):
        trial.suggest_int("pgd_steps", 2, 10)
    if training == "trades":
        trial.suggest_float("trades_beta", 1.0, 10.0)
    if training == "free":
        trial.suggest_int("free_replays", 2, 8)
    return training


def suggest_norm(trial: optuna.Trial, training: str) -> dict[str, object]:
    """`static` training has BatchNorm, as in AccelAT's code: with Fixup untrained logits do not depend on the image."""
    if training == "static":
        trial.suggest_categorical("eval_statistics", ["population", "batch"])
        return {"norm": "batchnorm"}
    norm = trial.suggest_categorical("norm", ["batchnorm", "robustnorm", "groupnorm", "fixup"])
    if norm in ("batchnorm", "robustnorm"):  # the others have no statistics of a population
        trial.suggest_categorical("eval_statistics", ["population", "batch"])
    return {}


def suggest_optimizer(trial: optuna.Trial) -> None:
    trial.suggest_float("lr_batch_ratio", 1e-4, 5e-3, log=True)
    schedules = ["constant", "multistep", "linear", "cosine", "onecycle", "exponential", "accelat"]
    trial.suggest_categorical("lr_schedule", schedules)
    if trial.suggest_categorical("momentum", [0.0, 0.5, 0.9, 0.95]) > 0:
        trial.suggest_categorical("nesterov", [True, False])
    trial.suggest_float("weight_decay", 1e-5, 5e-3, log=True)


def suggest_batch_sizes(trial: optuna.Trial, epochs: int) -> dict[str, object]:
    """The schedule; its constants where Optuna cannot suggest them: sizes and milestones are sequences."""
    kinds = ["constant", "geometric", "linear", "milestones", "plateau"]
    kind = trial.suggest_categorical("batch_size_schedule.kind", kinds)
    if kind == "constant":
        trial.suggest_categorical("batch_size_schedule.size", [8, 16, 32, 64, 128, 256, 512])
        return {}
    trial.suggest_categorical("lr_follows_batch", [True, False])
    if kind == "milestones":  # as multistep cuts the LR: at a half and at three quarters
        return {
            "batch_size_schedule.sizes": (32, 128, 512),
            "batch_size_schedule.milestones": (epochs // 2, epochs * 3 // 4),
        }
    trial.suggest_categorical("batch_size_schedule.first", [8, 16, 32, 64])
    trial.suggest_categorical("batch_size_schedule.last", [64, 128, 256, 512])
    if kind != "linear":
        trial.suggest_categorical("batch_size_schedule.factor", [2, 4])
    if kind == "plateau":
        trial.suggest_int("batch_size_schedule.patience", 1, 5)
    return {}
