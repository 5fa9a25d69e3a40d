"""A study's trials as tables, and the files of results/<study>/ that follow from its storage."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from safetensors import SafetensorError, safe_open
from scipy.stats import binomtest

from study.front import hypervolume, non_dominated
from study.settings import ADDED_LATER, Objective, StudySettings
from study.storage import redacted
from trainables import stores
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.files import write_whole

PACKAGES = ("torch", "torchvision", "ray", "optuna", "numpy", "scikit-learn")


# What a proposed trial is expected to add to the hypervolume, as a share of it (`study.sampling.expected_share`), and
# the rate of that in its own training seconds: where trials last seconds, no hour goes on at it.
GAIN, GAIN_PER_HOUR = "expected_gain", "expected_gain_per_hour"


@lru_cache(maxsize=10_000)
def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """95 % Wilson interval of an accuracy measured on `n` examples.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    interval = binomtest(round(accuracy * n), n).proportion_ci(0.95, method="wilson")
    return interval.low, interval.high


def is_complete(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.COMPLETE and all(np.isfinite(trial.values))


def front_of(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The non-dominated of the trials that ran their whole schedule, fastest first."""
    complete = [trial for trial in trials if is_complete(trial)]
    mask = non_dominated([trial.values for trial in complete])
    return sorted((trial for trial, keep in zip(complete, mask, strict=True) if keep), key=lambda t: t.values[1])


def front_hypervolumes(trials: list[FrozenTrial]) -> list[float]:
    """Hypervolume (accuracy x seconds) after each complete trial, in the order given.

    The reference point is accuracy 0 and the slowest of them all, so that the values compare.
    """
    complete, most = [trial.values for trial in trials if is_complete(trial)], slowest(trials)
    return [hypervolume(complete[: i + 1], (0.0, most)) for i in range(len(complete))]


def slowest(trials: Iterable[FrozenTrial]) -> float:
    """Seconds of the slowest complete trial; 0 where there is none."""
    return max((trial.values[1] for trial in trials if is_complete(trial)), default=0.0)


def front_hypervolume(trials: list[FrozenTrial]) -> float:
    """Hypervolume of the front, from accuracy 0 and the slowest complete trial's seconds.

    So a trial that is slower than all before adds to it even if it is not on the front; `front_hypervolumes` compare.
    """
    return hypervolume([trial.values for trial in trials if is_complete(trial)], (0.0, slowest(trials)))


def promised(trials: list[FrozenTrial], gain: str) -> float | None:
    """`GAIN` or `GAIN_PER_HOUR` as it was when the newest trial was proposed; None where the sampler does not tell."""
    proposed = [trial for trial in trials if not trial.user_attrs.get("label")]
    return proposed[-1].user_attrs.get(gain) if proposed else None


def percent(share: float) -> str:
    """Three digits, written out."""
    return f"{float(f'{100 * share:.3g}'):,g} %"


def eps_text(eps: float) -> str:
    """Radius in pixel units and in steps of 1/255."""
    return f"{eps:.4g} ({eps * 255:.3g}/255)"


def attack_text(settings: Mapping[str, object]) -> str:
    """How accuracy under attack was measured, its radius in pixel units and steps of 1/255."""
    settings = ADDED_LATER | settings
    norm = {"linf": "l-inf", "l2": "l2"}[settings["attack_norm"]]
    return f"PGD-{settings['attack_steps']}, {norm}, eps {eps_text(settings['eps'])}"


def describe(trial: FrozenTrial) -> str:
    """The trial's label, or its norm and batch sizes, e.g. `fixup 8→128`."""
    if label := trial.user_attrs.get("label"):
        return label
    if "config" not in trial.user_attrs:
        return ""
    return short_name(trial.user_attrs["config"])


def short_name(config: dict[str, object]) -> str:
    schedule = config["batch_size_schedule"]
    sizes = schedule.get("sizes") or [schedule.get("first"), schedule.get("last")]
    batches = str(schedule["size"]) if schedule["kind"] == "constant" else f"{sizes[0]}→{sizes[-1]}"
    training = "" if config["training"] == "natural" else f" {config['training']}"
    return f"{config['norm']} {batches}{training}"


def row(trial: FrozenTrial) -> dict[str, object]:
    """One trial as a row of trials.csv."""
    attrs = trial.user_attrs
    columns: dict[str, object] = {
        "number": trial.number,
        "label": attrs.get("label", ""),
        "state": trial.state.name,
        "reason": attrs.get("reason", ""),
        "node": attrs.get("node", ""),
        "tune_trial_id": attrs.get("tune_trial_id", ""),
    }
    columns |= dict.fromkeys(JUDGED)
    if is_complete(trial):
        (adversarial, seconds), clean, n = trial.values, attrs["clean_accuracy"], attrs["n_examples"]
        judged = adversarial, *wilson(adversarial, n), clean, *wilson(clean, n), n, seconds
        columns |= dict(zip(JUDGED, judged, strict=True)) | attrs.get("probes", {})
    columns |= {name: attrs.get(name) for name in ("measured_seconds", "calibrated_seconds")}
    columns |= {
        name: json.dumps(value) if isinstance(value, list | dict) else value
        for name, value in flatten(attrs.get("config", {})).items()
    }
    return columns


def flatten(config: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested names joined by dots, as search spaces suggest them."""
    flat: dict[str, object] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def trials_frame(trials: list[FrozenTrial]) -> pd.DataFrame:
    """Every trial, one row each."""
    return frame([row(trial) for trial in trials])


def front_frame(trials: list[FrozenTrial]) -> pd.DataFrame:
    """Front members, fastest first, with the path of their weights relative to the study's folder."""
    rows = [row(trial) | {"weights": f"models/{weights_name(trial.number)}"} for trial in front_of(trials)]
    made = frame(rows) if rows else frame([]).assign(weights=None)
    return made.drop(columns=["state", "reason"])


def frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    """The rows, whole numbers as such also where some rows have none; without rows, the columns of a trial."""
    made = pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(row(BLANK)))
    kinds = {name: {type(row[name]) for row in rows if row.get(name) is not None} for name in made}
    return made.astype({name: "Int64" for name, kind in kinds.items() if kind == {int}})


# What is known of a complete trial alone; intervals are of 95 %.
JUDGED = ("adversarial_accuracy", "adversarial_low", "adversarial_high", "clean_accuracy", "clean_low", "clean_high")
JUDGED += ("n_examples", "train_seconds")
BLANK = create_trial(state=TrialState.WAITING, user_attrs={"config": TrialConfig().model_dump(mode="json")})


def weights_name(number: int) -> str:
    return f"{number:04d}.safetensors"


def checkpoint_name(number: int) -> str:
    return f"{number:04d}"


def sync_models(trials: list[FrozenTrial], folder: Path, checkpoints: str, ended: FrozenTrial | None = None) -> None:
    """Weights for front members only, and no checkpoint of a finished trial.

    Follows from the storage alone, so it can be run at any time and mends what a crash left half done; with
    `ended`, only that trial's checkpoint is looked at. `checkpoints` is a path or URI.
    """
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    wanted = {weights_name(trial.number): trial for trial in front_of(trials)}
    for name, trial in wanted.items():
        if not holds_weights(models / name, trial):
            place = stores.join(checkpoints, checkpoint_name(trial.number))
            made = stores.store(place).read("weights.safetensors")
            if made is not None:
                write_whole(models / name, made)
    for path in models.glob("*.safetensors"):
        if path.name not in wanted:
            path.unlink()
    remove_finished(trials, checkpoints, ended)


def remove_finished(trials: list[FrozenTrial], checkpoints: str, ended: FrozenTrial | None = None) -> None:
    """Removes checkpoints of finished trials; arguments as in `sync_models`."""
    kept = stores.store(checkpoints)
    finished = {checkpoint_name(trial.number) for trial in trials if trial.state.is_finished()}
    for name in finished.intersection(kept.names() if ended is None else [checkpoint_name(ended.number)]):
        kept.remove(name)


def holds_weights(path: Path, trial: FrozenTrial) -> bool:
    """Whether the file has weights of this trial's configuration, and not of another study's trial of that number."""
    try:
        with safe_open(path, "numpy") as file:
            config = TrialConfig.model_validate_json(file.metadata()["config"])
        return config == TrialConfig(**trial.user_attrs["config"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):  # TypeError: a file without metadata
        return False


# The columns that study.confirm writes, and what they hold; study/confirmation.py says what they are.
CONFIRMED = {"number": int, "name": str, "role": str, "n_seeds": int, "n_failed": int, "n_examples": int}
CONFIRMED |= {"n_attack_examples": int, "objective": str}
CONFIRMED |= {
    f"{quantity}_{what}": float
    for quantity in ("clean", "adversarial", "autoattack", "seconds")
    for what in ("mean", "std", "low", "high")
}
CONFIRMED |= {"autoattack_pgd": float, "front_probability": float, "gates_failed": str}
CONFIRMED |= {"searched_adversarial": float, "searched_seconds": float}
GATES = {"number": int, "name": str, "gate": str, "passed": bool, "figure": float, "threshold": float}
GATES |= {"unit": str, "text": str}


def read_confirmed(path: Path) -> pd.DataFrame:
    """confirmed.csv; NaN where a number is empty.

    Raises:
        InputError: If it is not as study.confirm writes it.
    """
    table = read_written(path, CONFIRMED)
    unknown = set(table["objective"]) - set(get_args(Objective))
    if unknown:
        raise InputError(f"{path}: objective {unknown.pop()!r}; accepted: what study.confirm writes; run it again")
    return table


def read_gates(path: Path) -> pd.DataFrame:
    """gates.csv.

    Raises:
        InputError: If it is not as study.confirm writes it.
    """
    return read_written(path, GATES)


def read_written(path: Path, columns: dict[str, type]) -> pd.DataFrame:
    """Raises:
    InputError: If a column is missing, or holds something else.
    """
    accepted = "accepted: what study.confirm writes; run it again"
    texts = [column for column, kind in columns.items() if kind is str]
    try:
        # A label may be `None`, or `0010`: only an empty cell is none, and text stays text.
        table = pd.read_csv(path, dtype=columns, keep_default_na=False, na_values=[""])
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}; {accepted}") from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; {accepted}")
    return table.fillna(dict.fromkeys(texts, ""))


def write_tables(study: Study, folder: Path) -> None:
    """trials.csv and front.csv, from the storage."""
    trials = study.get_trials(deepcopy=False)
    for name, frame in [("trials.csv", trials_frame(trials)), ("front.csv", front_frame(trials))]:
        write_whole(folder / name, frame.to_csv(index=False).encode())


def write_study_json(
    settings: StudySettings,
    folder: Path,
    ray_resources: dict[str, float],
    objective: Objective,
    images: dict[str, str] | None = None,
) -> None:
    """Settings, versions, hardware and the images' fingerprints, where they are known; never a password."""
    content = {
        "settings": settings.model_dump(mode="json") | {"storage": redacted(settings.storage_url)},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "ray_resources": ray_resources},
        "objective": objective,
    } | ({"images": images} if images else {})
    write_whole(folder / "study.json", (json.dumps(content, indent=2) + "\n").encode())
