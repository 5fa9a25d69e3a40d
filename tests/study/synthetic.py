"""A made-up study of any size in a few seconds: trials of every state, curves, published configurations."""

import json
import random
from datetime import datetime, timedelta

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import insert

from study import storage

LABELS = ["BatchNorm 128", "Fixup 128", "Fixup 8", "Fixup 8→128"]
SIZES, FIRSTS = [8, 16, 32, 64, 128], [8, 16, 32]
SETTINGS = {"name": "synthetic", "space": "quickstart", "dataset": "digits", "depth": 56, "eps": 0.1}
SETTINGS |= {"attack_steps": 10, "eval_examples": 300, "seed": 0}

DISTRIBUTIONS = {
    "norm": CategoricalDistribution(["batchnorm", "fixup", "robustnorm", "groupnorm"]),
    "lr_batch_ratio": FloatDistribution(2e-4, 3e-3, log=True),
    "momentum": FloatDistribution(0.5, 0.95),
    "epochs": IntDistribution(4, 60),
    "batch_size_schedule.kind": CategoricalDistribution(["constant", "geometric"]),
    "batch_size_schedule.size": CategoricalDistribution(SIZES),
    "batch_size_schedule.first": CategoricalDistribution(FIRSTS),
}


def write(url: str, n_trials: int, name: str = "synthetic", target: int | None = None, seed: int = 0) -> None:
    """A study of `n_trials` ended trials, of `target` that were asked for, in the storage at `url`.

    Optuna's own add_trial takes 50 ms each: the rows are inserted at once, into the tables of Optuna's schema.
    """
    rng = random.Random(seed)
    database = storage.from_url(url)
    study = storage.open_study(database, name)
    study.set_user_attr("settings", SETTINGS | {"name": name, "trials": target or n_trials})
    study.set_user_attr("objective", "measured")
    rows: dict[type, list[dict[str, object]]] = {
        table: []
        for table in (
            models.TrialModel,
            models.TrialParamModel,
            models.TrialValueModel,
            models.TrialUserAttributeModel,
        )
    }
    now = datetime(2026, 1, 1)
    for number in range(n_trials):
        trial_id = number + 1
        params, values, attrs, state, seconds = _trial(rng, number)
        rows[models.TrialModel].append(
            {
                "trial_id": trial_id,
                "number": number,
                "study_id": study._study_id,
                "state": state,
                "datetime_start": now,
                "datetime_complete": now + timedelta(seconds=1.3 * seconds),
            }
        )
        now += timedelta(seconds=0.7 * seconds)
        for field, value in params.items():
            distribution = DISTRIBUTIONS[field]
            rows[models.TrialParamModel].append(
                {
                    "trial_id": trial_id,
                    "param_name": field,
                    "param_value": distribution.to_internal_repr(value),
                    "distribution_json": distribution_to_json(distribution),
                }
            )
        for objective, value in enumerate(values):
            rows[models.TrialValueModel].append(
                {
                    "trial_id": trial_id,
                    "objective": objective,
                    "value": value,
                    "value_type": models.TrialValueModel.TrialValueType.FINITE,
                }
            )
        for key, value in attrs.items():
            rows[models.TrialUserAttributeModel].append(
                {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            )
    with database.engine.begin() as connection:
        for table, of_table in rows.items():
            connection.execute(insert(table), of_table)
    database.engine.dispose()


def _trial(
    rng: random.Random, number: int
) -> tuple[dict[str, object], list[float], dict[str, object], TrialState, float]:
    """Parameters, objective values (none where it did not end well), attributes, state, training seconds."""
    params: dict[str, object] = {
        "norm": rng.choice(DISTRIBUTIONS["norm"].choices),
        "lr_batch_ratio": 2e-4 * 15 ** rng.random(),
        "momentum": rng.uniform(0.5, 0.95),
        "epochs": rng.randint(4, 60),
        "batch_size_schedule.kind": rng.choice(["constant", "geometric"]),
    }
    if params["batch_size_schedule.kind"] == "constant":
        first = last = params["batch_size_schedule.size"] = rng.choice(SIZES)
        schedule: dict[str, object] = {"kind": "constant", "size": first}
    else:
        first, last = rng.choice(FIRSTS), 128
        params["batch_size_schedule.first"] = first
        schedule = {"kind": "geometric", "first": first, "last": last, "factor": 2}
    epochs = params["epochs"]
    seconds = epochs * (0.3 + 10 / first) * rng.uniform(0.9, 1.1)
    skill = 0.2 + 0.3 * (1 - first / 128) + 0.1 * (params["norm"] == "fixup") + 0.1 * min(epochs, 30) / 30
    accuracy = round(300 * min(0.95, skill + rng.gauss(0, 0.03))) / 300
    curve = [
        {
            "epoch": epoch,
            "train_seconds": seconds * epoch / epochs,
            "clean_accuracy": round(0.98 * (1 - 0.5**epoch), 4),
            "adversarial_accuracy": round(accuracy * (1 - 0.7**epoch), 4),
            "n_examples": 75,
            "train_loss": 1 / epoch,
            "batch_size": first if 2 * epoch <= epochs else last,
            "lr": params["lr_batch_ratio"] * (first if 2 * epoch <= epochs else last),
        }
        for epoch in range(1, epochs + 1)
    ]
    config = {field: params[field] for field in ("norm", "lr_batch_ratio", "momentum", "epochs")}
    config |= {"depth": 56, "batch_size_schedule": schedule, "training": "natural", "seed": number}
    attrs: dict[str, object] = {"config": config, "node": "node", "tune_trial_id": f"{number:08x}"}
    if number < len(LABELS):
        attrs["label"] = LABELS[number]
    if number < len(LABELS) or rng.random() < 0.8:
        curve[-1] |= {"adversarial_accuracy": accuracy, "n_examples": 300}
        attrs |= {"reason": "finished", "clean_accuracy": 0.97, "n_examples": 300, "measured_seconds": seconds}
        return params, [accuracy, seconds], attrs | {"curve": curve}, TrialState.COMPLETE, seconds
    early = rng.random() < 0.6
    attrs["curve"] = curve[: max(1, epochs // 3)] if early else curve[: rng.randint(0, 2)]
    attrs["reason"] = "stopped early: no better than the front" if early else "diverged: loss nan in epoch 3"
    return params, [], attrs, TrialState.PRUNED if early else TrialState.FAIL, seconds / 3


if __name__ == "__main__":
    import sys

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    write(sys.argv[1], int(sys.argv[2]))
