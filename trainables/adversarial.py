"""What one training step is under each recipe.

Attacks run in the mode that the model trains in, as in the authors' code: running statistics then
see adversarial images too, every iterate of them. TRADES alone attacks in eval mode.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.attacks import (
    Attack,
    ball,
    climb,
    default_step_size,
    evaluating,
    random_start,
    summed_cross_entropy,
)
from trainables.engine import Step, train_step, update
from trainables.sgd import SGD
from trainables.timing import CRAFTED_AT_ONCE

if TYPE_CHECKING:  # which needs pydantic; a step reads the same fields of anything
    from trainables.config import TrialConfig


def natural(config: "TrialConfig", generator: torch.Generator) -> Step:
    """Trains on the images as they are."""
    return against(lambda model, x, y: x)


def pgd(config: "TrialConfig", generator: torch.Generator) -> Step:
    """Trains on the last iterate of PGD from a uniform start; steps of 2.5·eps/pgd_steps unless given.

    Source: Madry et al. 2018, arXiv:1706.06083; the step size is that of its section 5, which fits any eps and steps.
    """
    step_size = config.step_size or default_step_size(config.eps, config.pgd_steps)
    return against(last_iterate(config.attack_norm, config.eps, config.pgd_steps, step_size, generator))


def fgsm(config: "TrialConfig", generator: torch.Generator) -> Step:
    """Trains on one long step from a uniform start (FGSM-RS), of 1.25·eps unless given.

    Source: Wong, Rice, Kolter 2020, Fast is better than free, arXiv:2001.03994.
    """
    step_size = config.step_size or 1.25 * config.eps
    return against(last_iterate(config.attack_norm, config.eps, 1, step_size, generator))


def free(config: "TrialConfig", generator: torch.Generator) -> Step:
    """Trains `free_replays` times on each batch, its perturbation moving on; see `FreeStep`."""
    largest = config.batch_size_schedule.largest
    step_size = config.step_size or config.eps
    return FreeStep(config.eps, step_size, config.free_replays, largest, config.attack_norm)


class FreeStep:
    """Free adversarial training: each backward pass serves the weights and the perturbation alike.

    The perturbation starts at zero and is carried from batch to batch and from pass to pass, within eps alone; what is
    trained on, and whose gradient moves it, is clipped to an image. It changes in place, and a batch smaller than the
    `largest` uses its first rows.

    Source: Shafahi et al. 2019, Adversarial Training for Free!, arXiv:1904.12843, algorithm 1. The authors' code takes
    the gradient through the clipping, so that what it cuts off does not move.
    """

    def __init__(self, eps: float, step_size: float, replays: int, largest: int, norm: str) -> None:
        self.eps, self.step_size, self.replays, self.largest, self.norm = eps, step_size, replays, largest, norm
        self.delta: Tensor | None = None  # (N, C, H, W) of the largest batch

    def carry(self, images: Tensor) -> list[Tensor]:
        """The perturbation, made for images (N, C, H, W) like these; what a checkpoint and a trial run must restore."""
        if self.delta is None:
            empty = torch.zeros(self.largest, *images.shape[1:], device=images.device)
            self.delta = empty.contiguous(memory_format=torch.channels_last)
        return [self.delta]

    def __call__(self, model: nn.Module, optimizer: SGD, x: Tensor, y: Tensor) -> Tensor:
        """`free_replays` updates on one batch; returns their mean loss."""
        (perturbation,) = self.carry(x)
        carried, geometry, losses = perturbation[: len(x)], ball(self.norm), []
        for _ in range(self.replays):
            # A leaf that asks for its gradient: train_step's one backward pass fills it beside the weights'.
            images = (x + carried).clamp(0, 1).requires_grad_()
            losses.append(train_step(model, optimizer, given(images), x, y))
            carried.add_(self.step_size * geometry.steepest(images.grad))
            carried.copy_(geometry.clip(carried, self.eps))
        return torch.stack(losses).mean()


def trades(config: "TrialConfig", generator: torch.Generator) -> Step:
    """Trains on CE(clean) + trades_beta · KL(clean || adversarial).

    The attack climbs the KL divergence from x + 0.001·normal noise for `pgd_steps` steps, of
    2.5·eps/pgd_steps unless given: 0.00775 for the authors' eps 0.031 and 10 steps, where they took 0.007.

    Source: Zhang et al. 2019, arXiv:1901.08573, and the authors' code, which attacks in eval mode. It passes the clean
    batch through the network twice, so that running statistics see it twice; here once, and then the adversarial one.
    """
    step_size = config.step_size or default_step_size(config.eps, config.pgd_steps)

    def step(model: nn.Module, optimizer: SGD, x: Tensor, y: Tensor) -> Tensor:
        start = 0.001 * torch.empty_like(x).normal_(generator=generator)
        with evaluating(model):
            with torch.no_grad():
                clean = model(x)
            delta = climb(
                model,
                x,
                start,
                lambda logits: divergence(clean, logits, "sum"),
                eps=config.eps,
                steps=config.pgd_steps,
                step_size=step_size,
                norm=config.attack_norm,
            )
        logits = model(x)
        robustness = divergence(logits, model(x + delta), "batchmean")
        return update(optimizer, F.cross_entropy(logits, y) + config.trades_beta * robustness)

    return step


def divergence(clean: Tensor, adversarial: Tensor, reduction: str) -> Tensor:
    """KL(clean || adversarial) of two (N, K) logits; `batchmean` divides the sum by N."""
    return F.kl_div(F.log_softmax(adversarial, 1), F.log_softmax(clean, 1), reduction=reduction, log_target=True)


def craft(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    step_size: float | None = None,
    generator: torch.Generator,
    batch_size: int = CRAFTED_AT_ONCE,
) -> Tensor:
    """Images that attack the model as it is, in eval mode: where PGD ends.

    `static` training and evaluation against the initial weights use the same such images in every epoch. They
    stand for the authors' code of AccelAT, which crafts adversarial images of the training and of the test set
    before training starts, by Foolbox's LinfPGD (40 steps of eps/30 from a random start) against a network that
    has ImageNet's weights and a new classifier. Here the initial weights are random, which makes a weaker attack.

    Args:
        x: (N, C, H, W), in [0, 1].
        y: (N,), labels.
        norm: `linf` or `l2`.
        eps: Radius in pixel units.
        steps: Gradients per image.
        step_size: In pixel units; None: 2.5·eps/steps.
        generator: On the images' device; draws the starts.
        batch_size: Images per call of the model.

    Returns:
        (N, C, H, W), in [0, 1] and within `eps` of `x`.

    Source: github.com/farzadnikfam/AccelAT, accelat.py and function_attack.py.
    """
    attack = last_iterate(norm, eps, steps, step_size or default_step_size(eps, steps), generator)
    with evaluating(model):
        batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([attack(model, images, labels) for images, labels in batches])


def against(attack: Attack) -> Step:
    """The step that trains on what `attack` finds."""

    def step(model: nn.Module, optimizer: SGD, x: Tensor, y: Tensor) -> Tensor:
        return train_step(model, optimizer, attack, x, y)

    return step


def given(images: Tensor) -> Attack:
    """The attack whose images are known already."""
    return lambda model, x, y: images


def last_iterate(norm: str, eps: float, steps: int, step_size: float, generator: torch.Generator) -> Attack:
    """Ascent from a uniform start within `eps`, taken where it ends, whether that fools the model or not.

    Evaluation's `pgd` would look at one more prediction to choose between iterates.
    """

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        start = random_start(x, eps, norm, generator)
        return x + climb(model, x, start, summed_cross_entropy(y), eps=eps, steps=steps, step_size=step_size, norm=norm)

    return attack


RECIPES: dict[str, Callable[["TrialConfig", torch.Generator], Step]] = {
    "natural": natural,
    "pgd": pgd,
    "fgsm": fgsm,
    "free": free,
    "trades": trades,
    "static": natural,  # on images that were crafted before training
}


def step(config: "TrialConfig", generator: torch.Generator) -> Step:
    """The training step of `config.training`.

    Args:
        config: Names the recipe and its norm, eps, steps and step size.
        generator: On the images' device; draws the random starts.
    """
    return RECIPES[config.training](config, generator)
