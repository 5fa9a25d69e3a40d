"""What may be measured of a trained network besides its clean and adversarial accuracy."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables import strong
from trainables.attacks import EVAL_BATCH, accuracy, evaluating, fgsm, is_correct, random_start, robust_accuracy
from trainables.hessian import dominant_eigenvalues

logger = logging.getLogger(__name__)

BATCHES = (EVAL_BATCH, 128, 32, 1)  # sizes of evaluation batches
N_HESSIAN = 256  # training images; some hundred passes over them are made
HESSIAN_TOLERANCE = 1e-2  # of the residual, so that an eigenvalue is good to about the square of it


class Subject(NamedTuple):
    """What a probe looks at; images (N, C, H, W) in [0, 1]."""

    model: nn.Module
    train: tuple[Tensor, Tensor]  # images and labels, never augmented
    judged: tuple[Tensor, Tensor]  # those that accuracies are measured on
    eps: float  # radius in pixel units
    seed: int
    attack_steps: int = 10  # of the evaluation's PGD
    strong_examples: int = 50  # the first of those judged
    attack_norm: str = "linf"


Probe = Callable[[Subject], dict[str, float | str]]


def hessian(subject: Subject) -> dict[str, float]:
    """The two eigenvalues of largest modulus of the loss's Hessian, on the first 256 training images.

    The loss is the mean cross-entropy in eval mode, weight decay left out. Empty where they do not converge.
    """
    x, y = (part[:N_HESSIAN] for part in subject.train)
    generator = torch.Generator().manual_seed(subject.seed)
    try:
        with evaluating(subject.model):
            found = dominant_eigenvalues(
                subject.model, F.cross_entropy, [(x, y)], 2, tolerance=HESSIAN_TOLERANCE, generator=generator
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        logger.warning("no eigenvalues: %s", error)
        return {}
    return {"1": found[0].item(), "2": found[1].item()}


def batch_dependence(subject: Subject) -> dict[str, float]:
    """Accuracy at each size of evaluation batches, and how many predictions differ from those at 256.

    On the first images, as many as fill batches of 256; where there are fewer than 256, on all. `changed.any`
    counts images whose prediction is not the same at all sizes, `n` all images.
    """
    x, y = subject.judged
    n = len(y) // EVAL_BATCH * EVAL_BATCH or len(y)
    x, y = x[:n], y[:n]
    with evaluating(subject.model), torch.no_grad():
        logits = {size: torch.cat([subject.model(images) for images in x.split(size)]) for size in BATCHES}
    predictions = {size: values.argmax(1) for size, values in logits.items()}
    reference = predictions[EVAL_BATCH]
    changed = {size: predictions[size] != reference for size in BATCHES[1:]}
    return {
        "n": float(n),
        **{f"accuracy.{size}": is_correct(values, y).float().mean().item() for size, values in logits.items()},
        **{f"changed.{size}": float(mask.sum()) for size, mask in changed.items()},
        "changed.any": float(torch.stack(list(changed.values())).any(0).sum()),
    }


def fgsm_accuracy(subject: Subject) -> dict[str, float]:
    """Accuracy on images that are classified correctly clean and after one step of FGSM, from the image itself."""
    attack = partial(fgsm, eps=subject.eps, norm=subject.attack_norm)
    return {"accuracy": robust_accuracy(subject.model, *subject.judged, attack, EVAL_BATCH)}


def noise(subject: Subject) -> dict[str, float]:
    """Accuracy on images with noise, uniform within eps, cut off at 0 and 1."""
    x, y = subject.judged
    generator = torch.Generator(x.device).manual_seed(subject.seed)
    noisy = x + random_start(x, subject.eps, subject.attack_norm, generator)
    return {"accuracy": accuracy(subject.model, noisy, y, EVAL_BATCH)}


def strong_attacks(subject: Subject) -> dict[str, float | str]:
    """Accuracy under attacks that should find no more than the evaluation's PGD; see `strong.measure`."""
    attack = subject.eps, subject.attack_steps, subject.seed, subject.attack_norm
    return strong.measure(strong.Attacked(subject.model, *subject.judged, *attack), subject.strong_examples)


PROBES: dict[str, Probe] = {
    "hessian": hessian,
    "batch_dependence": batch_dependence,
    "fgsm": fgsm_accuracy,
    "noise": noise,
    "strong": strong_attacks,
}


def measure(names: Iterable[str], subject: Subject) -> dict[str, float | str]:
    """What the probes called `names` find, under dotted names such as `hessian.1`."""
    return {f"{name}.{what}": value for name in names for what, value in PROBES[name](subject).items()}


def catastrophic_overfitting(fgsm_accuracies: Sequence[float], pgd_accuracies: Sequence[float]) -> int | None:
    """The first epoch (from 1) that has lost half of the best PGD accuracy before it, while FGSM accuracy rose since.

    A loss of less than 0.1 does not count: accuracies of some hundred images go up and down by as much.

    Source: Wong, Rice, Kolter 2020, arXiv:2001.03994, section 5.4: PGD accuracy drops to nothing within an epoch or
    two of FGSM training, which goes on to beat FGSM; the thresholds are ours.
    """
    for epoch in range(1, len(pgd_accuracies)):
        best = max(range(epoch), key=pgd_accuracies.__getitem__)
        lost = pgd_accuracies[best] - pgd_accuracies[epoch]
        if lost >= max(0.1, pgd_accuracies[best] / 2) and fgsm_accuracies[epoch] > fgsm_accuracies[best]:
            return epoch + 1
    return None
