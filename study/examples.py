"""Adversarial examples of one front member beside the validation images that they were made from."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial

from study import cli
from study.results import front_of, holds_weights, weights_name
from trainables.config import DataConfig, EvalConfig
from trainables.errors import InputError

N_SHOWN = 8

# What must lie in the data folder, so that a report downloads nothing.
DOWNLOADED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "svhn": "train_32x32.mat"}


class Unavailable(Exception):
    """There is nothing to show; says why."""


@dataclass(frozen=True)
class Example:
    """One image, as PNG data URIs, and the classes that the network takes it for."""

    original: str
    adversarial: str
    difference: str
    label: str
    predicted: str  # of the adversarial image

    @property
    def fooled(self) -> bool:
        return self.predicted != self.label


@dataclass(frozen=True)
class Examples:
    """Of `trial`, the first of those images that it classifies correctly."""

    trial: FrozenTrial
    shown: list[Example]


def make(trials: Sequence[FrozenTrial], settings: dict[str, object], folder: Path) -> Examples:
    """Attack the most accurate front member whose weights are at hand, as the study's evaluation does.

    Raises:
        Unavailable: If there are no weights, or no images.
    """
    models = folder / "models"
    members = [trial for trial in front_of(trials) if holds_weights(models / weights_name(trial.number), trial)]
    if not members:
        raise Unavailable("the weights of the front's members are not in this results folder")
    dataset, data_dir = settings["dataset"], settings.get("data_dir")
    if dataset in DOWNLOADED and not (Path(data_dir or "data") / DOWNLOADED[dataset]).exists():
        raise Unavailable(f"the images of {dataset} are not in the study's data folder")
    trial = members[-1]
    try:
        return Examples(trial, _attack(trial, settings, models / weights_name(trial.number)))
    except (InputError, OSError) as error:
        raise Unavailable(f"the study's images cannot be read ({error})") from None


def _attack(trial: FrozenTrial, settings: dict[str, object], weights: Path) -> list[Example]:
    with cli.importing():
        from trainables import examples  # torch takes seconds that only this part of a report needs

    images = DataConfig(name=settings["dataset"], data_dir=settings.get("data_dir"))
    attack = {field: settings[field] for field in ("attack_norm", "eps", "attack_steps") if field in settings}
    attacked = examples.attack(weights, images, EvalConfig(**attack), trial.user_attrs["config"]["seed"], N_SHOWN)
    return [
        Example(_png(one.original), _png(one.adversarial), _png(one.difference), one.label, one.predicted)
        for one in attacked
    ]


def _png(pixels: np.ndarray) -> str:
    """(H, W, C), uint8, as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
