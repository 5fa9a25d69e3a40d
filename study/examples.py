"""Adversarial examples of one front member beside the validation images that they were made from."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from study.results import front_of, weights_name
from trainables.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

N_ATTACKED, N_SHOWN = 32, 8

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
    members = [trial for trial in front_of(trials) if (folder / "models" / weights_name(trial.number)).exists()]
    if not members:
        raise Unavailable("the weights of the front's members are not in this results folder")
    dataset, data_dir = settings["dataset"], settings.get("data_dir")
    if dataset in DOWNLOADED and not (Path(data_dir or "data") / DOWNLOADED[dataset]).exists():
        raise Unavailable(f"the images of {dataset} are not in the study's data folder")
    trial = members[-1]
    try:
        return Examples(trial, _attack(trial, settings, folder / "models" / weights_name(trial.number)))
    except (InputError, OSError) as error:
        raise Unavailable(f"the study's images cannot be read ({error})") from None


def _attack(trial: FrozenTrial, settings: dict[str, object], weights: Path) -> list[Example]:
    import torch  # five seconds that only this part of a report needs

    from trainables import data
    from trainables.config import EvalConfig
    from trainables.trial import evaluation_attack, first_examples, load_model

    model, dataset = load_model(weights), data.load(settings["dataset"], settings.get("data_dir"))
    x, y = first_examples(dataset.validation, N_ATTACKED)
    evaluation = EvalConfig(eps=settings["eps"], attack_steps=settings["attack_steps"])
    attacked = evaluation_attack(model, evaluation, trial.user_attrs["config"]["seed"])(model, x, y)
    with torch.no_grad():
        before, after = model(x).argmax(1), model(attacked).argmax(1)
    difference = ((attacked - x) / (2 * max(settings["eps"], 1e-9)) + 0.5).clamp(0, 1)
    return [
        Example(
            original=_png(x[i]),
            adversarial=_png(attacked[i]),
            difference=_png(difference[i]),
            label=dataset.class_names[y[i]],
            predicted=dataset.class_names[after[i]],
        )
        for i in (before == y).nonzero()[:N_SHOWN, 0].tolist()
    ]


def _png(image: "Tensor") -> str:
    """(C, H, W) in [0, 1] as a data URI."""
    from PIL import Image

    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
