"""Whether an adversarial accuracy can be believed: AutoAttack, and other attacks that should find no more than PGD.

Source: Croce, Hein 2020, arXiv:2003.01690, for AutoAttack; Carlini et al. 2019, arXiv:1902.06705, section 5, and
Athalye, Carlini, Wagner 2018, arXiv:1802.00420, section 3.1, for what an attack that works must show.
"""

import copy
import math
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.attacks import EVAL_BATCH, fraction, pgd, robust_mask
from trainables.norms import uses_batch_statistics

WHITE_BOX = ("apgd-ce", "apgd-t", "fab-t")  # with "square", the four parts of AutoAttack's standard version
MORE_STEPS, MORE_RESTARTS = 5, 5  # times those of the PGD that is checked
EPS_FACTORS = (0.5, 1.0, 2.0, 4.0)
THEIR_NORMS = {"linf": "Linf", "l2": "L2"}  # AutoAttack's names


class Attacked(NamedTuple):
    """What is attacked; images (N, C, H, W) in [0, 1], and the PGD whose figure is in question."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float  # radius in pixel units
    steps: int
    seed: int
    norm: str = "linf"


def measure(attacked: Attacked, n_strong: int) -> dict[str, float | str]:
    """Accuracy under each attack on the first `n_strong` images, and which of all images PGD leaves right.

    Returns:
        n: Images that were attacked strongly.
        pgd: Accuracy under the PGD in question, `converged` with five times its steps and five restarts.
        autoattack: Under AutoAttack's standard version.
        square_alone: Share of images that Square, which sees only logits, fools and the converged PGD does not.
        eps.R: Accuracy under the PGD in question at radius R; the largest is `grey_radius`.
        commonest: Share of the commonest class: the most that can be right where all images can be made the same.
        robust: All images, packed by `pack`: whether the PGD in question leaves them right.
    """
    first = attacked._replace(x=attacked.x[:n_strong], y=attacked.y[:n_strong])
    plain, converged = under_pgd(first), under_pgd(first, MORE_STEPS, MORE_RESTARTS)
    white = under_autoattack(first, WHITE_BOX)
    black = torch.ones_like(white)
    # What both others fooled needs no queries, unless the rest of its batch would be judged differently without it.
    left = torch.ones_like(white) if uses_batch_statistics(first.model) else white | converged
    black[left] = under_autoattack(first._replace(x=first.x[left], y=first.y[left]), ("square",))
    large = grey_radius(first.x, first.norm)
    radii = sorted({eps for factor in EPS_FACTORS if (eps := factor * first.eps) < large} | {large})
    return {
        "n": float(len(first.y)),
        "pgd": fraction(plain),
        "converged": fraction(converged),
        "autoattack": fraction(white & black),
        "square_alone": fraction(converged & ~black),
        **{f"eps.{eps:.4g}": fraction(under_pgd(first._replace(eps=eps))) for eps in radii},
        "commonest": (torch.bincount(first.y).max() / len(first.y)).item(),
        "robust": pack(under_pgd(attacked)),
    }


def grey_radius(x: Tensor, norm: str) -> float:
    """Within which all images (N, C, H, W) can become the same grey one, so that no model can tell classes apart."""
    return 0.5 if norm == "linf" else 0.5 * math.sqrt(x[0].numel())


def under_pgd(attacked: Attacked, more_steps: int = 1, restarts: int = 1) -> Tensor:
    """(N,), bool: right both clean and under PGD from random starts."""
    model, x, y, eps, steps, seed, norm = attacked
    attack = partial(
        pgd,
        eps=eps,
        norm=norm,
        steps=steps * more_steps,
        restarts=restarts,
        generator=torch.Generator(x.device).manual_seed(seed),
        drop_fooled=not uses_batch_statistics(model),
    )
    return robust_mask(model, x, y, attack, EVAL_BATCH)


def under_autoattack(attacked: Attacked, parts: tuple[str, ...]) -> Tensor:
    """(N,), bool: right both clean and under those parts of AutoAttack, each with the standard version's settings."""
    model, x, y, eps, _, seed, norm = attacked
    if not len(y):
        return torch.ones_like(y, dtype=torch.bool)
    # The library views gradients as (N, -1), which channels-last ones refuse, and fills parameters' `.grad`.
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    attack = partial(autoattack, parts=parts, eps=eps, seed=seed, norm=norm)
    return robust_mask(plain, x.contiguous(), y, attack, EVAL_BATCH)


def autoattack(
    model: nn.Module, x: Tensor, y: Tensor, parts: tuple[str, ...], eps: float, seed: int, norm: str
) -> Tensor:
    """The images that `parts` of AutoAttack find, in turn, each for what those before it did not fool.

    Of fewer than ten classes, all but the right one are targets. The targeted loss needs four classes: of fewer,
    `apgd-t` is left out. For Square in l2 images grow at their edges, which the model does not see, to a size that
    the library's grid of squares fits: 12x12 to 13x13, 32x48 to 48x48.
    """
    from pyautoattack import AutoAttack  # a machine that only trains needs none

    n_classes, (height, width) = model(x[:1]).shape[1], x.shape[2:]
    if norm == "l2" and "square" in parts:
        size = next(size for size in count(max(height, width)) if grid_fits(size))
        model, x = Cropped(model, height, width), F.pad(x, (0, size - width, 0, size - height))
    attack = AutoAttack(model, norm=THEIR_NORMS[norm], eps=eps, seed=seed, device=x.device)
    attack.attacks_to_run = [part for part in parts if part != "apgd-t" or n_classes > 3]
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, n_classes - 1)
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # it seeds the global generators
        images, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
    return images[:, :, :height, :width]


def grid_fits(size: int) -> bool:
    """Whether the squares that Square's l2 attack begins with, as the library lays them out, lie within the image."""
    square = size // 5
    return square == 1 or square > 1 and (size - 5 * square) // 2 + size // square * square <= size


class Cropped(nn.Module):
    """A model that sees the upper left `height` x `width` pixels alone."""

    def __init__(self, model: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.model, self.height, self.width = model, height, width

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x[:, :, : self.height, : self.width])


def pack(mask: Tensor) -> str:
    """(N,) of bool as text, four examples a character."""
    return np.packbits(mask.cpu().numpy()).tobytes().hex()
