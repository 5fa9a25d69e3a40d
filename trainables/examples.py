"""Adversarial images of a trained network beside the images that they were made from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainables import data, devices
from trainables.config import DataConfig, EvalConfig
from trainables.trial import evaluation_attack, first_examples, load_model

N_ATTACKED = 32


@dataclass(frozen=True)
class Attacked:
    """One image that the network classifies correctly, and what an attack made of it; images (H, W, C), uint8."""

    original: np.ndarray
    adversarial: np.ndarray
    difference: np.ndarray  # grey where nothing changed, black and white at the image's largest change
    label: str
    predicted: str  # of the adversarial image


@devices.computing_on(1)  # a report may be asked for while trials have the cores
def attack(weights: Path, images: DataConfig, evaluation: EvalConfig, seed: int, n: int) -> list[Attacked]:
    """Attack a network as a trial's evaluation does.

    Args:
        weights: A file that `Trial.save_weights` wrote.
        images: Whose validation images are attacked.
        evaluation: The attack's norm, radius and steps.
        seed: Of the trial.
        n: At most as many, of the first `N_ATTACKED` images, are returned.

    Raises:
        InputError: If the images cannot be read.
        OSError: If the weights cannot be.
    """
    model, dataset = load_model(weights), data.configured(images)
    x, y = first_examples(dataset.validation, N_ATTACKED)
    attacked = evaluation_attack(model, evaluation, seed)(model, x, y)
    with torch.no_grad():
        before, after = model(x).argmax(1), model(attacked).argmax(1)
    change = attacked - x
    largest = change.abs().amax((1, 2, 3), keepdim=True)
    difference = (change / (2 * largest.clamp_min(1e-9)) + 0.5).clamp(0, 1)
    return [
        Attacked(
            *(_pixels(images[i]) for images in (x, attacked, difference)),
            label=dataset.class_names[y[i]],
            predicted=dataset.class_names[after[i]],
        )
        for i in (before == y).nonzero()[:n, 0].tolist()
    ]


def _pixels(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] to (H, W, C), uint8."""
    return (image * 255).round().byte().permute(1, 2, 0).numpy()
