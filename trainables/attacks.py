"""Adversarial images, and what a model gets right on them. Perturbations are in pixel units, images in [0, 1]."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.cuda_graphs import Graphs
from trainables.norms import uses_batch_statistics

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]  # model, images, labels -> adversarial images
Objective = Callable[[Tensor], Tensor]  # logits (N, K) -> what an attack maximises, summed over examples

TINY = torch.finfo(torch.float32).tiny
EVAL_BATCH = 256  # images an evaluation judges at once: statistics of the inference batch make accuracy depend on it


class Ball(NamedTuple):
    """What a norm means to an attack, for perturbations (N, C, H, W) of each example by itself."""

    steepest: Callable[[Tensor], Tensor]  # gradient -> direction of length one
    clip: Callable[[Tensor, float], Tensor]  # perturbation, eps -> nearest one within eps
    sample: Callable[[Tensor, float, torch.Generator | None], Tensor]  # like this, eps -> uniform within eps


def linf_clip(delta: Tensor, eps: float) -> Tensor:
    return delta.clamp(-eps, eps)


def linf_sample(like: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
    return torch.empty_like(like).uniform_(-eps, eps, generator=generator)


def l2_steepest(grad: Tensor) -> Tensor:
    # The largest entry goes first: squares of a confident model's gradients would underflow.
    grad = grad / grad.abs().amax((1, 2, 3), keepdim=True).clamp_min(TINY)
    return grad / l2_length(grad).clamp_min(TINY)


def l2_clip(delta: Tensor, eps: float) -> Tensor:
    return delta * (eps / l2_length(delta).clamp_min(TINY)).clamp_max(1)


def l2_sample(like: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
    """A normal direction, and a radius whose power of the dimension is uniform."""
    direction = torch.empty_like(like).normal_(generator=generator)
    radius = torch.rand(len(like), 1, 1, 1, generator=generator, device=like.device) ** (1 / like[0].numel())
    return eps * radius * direction / l2_length(direction)


def l2_length(delta: Tensor) -> Tensor:
    """(N, 1, 1, 1)."""
    return torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)


BALLS: dict[str, Ball] = {
    "linf": Ball(torch.sign, linf_clip, linf_sample),
    "l2": Ball(l2_steepest, l2_clip, l2_sample),
}


def ball(norm: str) -> Ball:
    """Raises:
    ValueError: If there is no norm of that name.
    """
    if norm not in BALLS:
        raise ValueError(f"unknown norm {norm!r}; choose from {sorted(BALLS)}")
    return BALLS[norm]


def project(delta: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """A perturbation near `delta`, within `eps`, that keeps `x + delta` an image.

    For l-inf it is the nearest; for l2 the nearest within `eps`, then the nearest that is an image.

    Args:
        delta: (N, C, H, W), pixel units.
        x: (N, C, H, W), in [0, 1].
        eps: Radius in pixel units, e.g. 8/255.
        norm: `linf` or `l2`.

    Returns:
        (N, C, H, W), pixel units.

    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1.
    """
    return (x + ball(norm).clip(delta, eps)).clamp(0, 1) - x


def random_start(x: Tensor, eps: float, norm: str, generator: torch.Generator | None) -> Tensor:
    """A perturbation drawn uniformly within `eps`, then projected; none without a generator."""
    return torch.zeros_like(x) if generator is None else uniform_start(x, eps, norm, generator)


def uniform_start(x: Tensor, eps: float, norm: str, generator: torch.Generator | None) -> Tensor:
    """A perturbation drawn uniformly within `eps`, then projected; None: by torch's global generator."""
    return project(ball(norm).sample(x, eps, generator), x, eps, norm)


def default_step_size(eps: float, steps: int) -> float:
    """Enough to cross the ball and turn back. Source: Madry et al. 2018, arXiv:1706.06083, section 5."""
    return 2.5 * eps / steps


def ascend(delta: Tensor, grad: Tensor, x: Tensor, *, eps: float, step_size: float, norm: str) -> Tensor:
    """One projected step of length `step_size` along `grad`, which every attack here is made of."""
    return project(delta + step_size * ball(norm).steepest(grad), x, eps, norm)


def input_gradient(model: nn.Module, images: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Gradient of `objective` with respect to `images`, and the logits; no parameter's `.grad` is touched."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(images)
        (grad,) = torch.autograd.grad(objective(logits), images)
    return grad, logits.detach()


def summed_cross_entropy(y: Tensor) -> Objective:
    """Summed, not averaged: an example's gradient doesn't depend on how many share its batch."""
    return partial(F.cross_entropy, target=y, reduction="sum")


def climb(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    objective: Objective,
    *,
    eps: float,
    steps: int,
    step_size: float,
    norm: str = "linf",
) -> Tensor:
    """The perturbation after `steps` steps from `delta`, whatever the model makes of those between."""
    for _ in range(steps):
        grad, _ = input_gradient(model, x + delta, objective)
        delta = ascend(delta, grad, x, eps=eps, step_size=step_size, norm=norm)
    return delta


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    generator: torch.Generator | None = None,
) -> Tensor:
    """One step of length `eps` up the cross-entropy, from `x` or, with a generator, from a uniform start.

    Args:
        model: Images to logits.
        x: (N, C, H, W), in [0, 1].
        y: (N,), labels.
        eps: Radius in pixel units.
        norm: `linf` or `l2`.
        generator: On the device of `x`; None starts at `x`.

    Returns:
        (N, C, H, W), in [0, 1] and within `eps` of `x`.

    Raises:
        ValueError: If `eps` is negative or `norm` unknown.

    Source: Goodfellow, Shlens, Szegedy 2015, arXiv:1412.6572.
    """
    require_ball(eps, norm)
    delta = random_start(x, eps, norm, generator)
    return x + climb(model, x, delta, summed_cross_entropy(y), eps=eps, steps=1, step_size=eps, norm=norm)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    norm: str = "linf",
    restarts: int = 1,
    generator: torch.Generator | None = None,
    drop_fooled: bool = False,
) -> Tensor:
    """Projected gradient ascent on the cross-entropy, judged at every iterate.

    Each restart has `steps` + 1 iterates, its start included. An example's image is the last one
    that the model misclassifies, or the last one where none fools it. So "is the image classified
    correctly?" asks the same as "is every iterate?". For a model that normalises by the inference
    batch this is not exact: images of different iterates meet in the batch that is returned.

    Args:
        model: Images to logits; in eval mode it is left as it was.
        x: (N, C, H, W), in [0, 1].
        y: (N,), labels.
        eps: Radius in pixel units.
        steps: Gradients per restart.
        step_size: In pixel units; None: 2.5·eps/steps.
        norm: `linf` or `l2`.
        restarts: Starts to try.
        generator: On the device of `x`; draws each start uniformly. None starts at `x`, and draws those after the
            first by torch's global generator.
        drop_fooled: An example stops at the first iterate that fools the model, and the others go on in a smaller
            batch. Same robust examples for less work, but data-dependent shapes.

    Returns:
        (N, C, H, W), in [0, 1] and within `eps` of `x`.

    Raises:
        ValueError: If an argument is out of range, or if fooled examples shall be dropped from a batch on which the
            others' logits depend.

    Source: Madry et al. 2018, arXiv:1706.06083.
    """
    require_ball(eps, norm)
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps {steps} and restarts {restarts} given; accepted: at least 1")
    if drop_fooled and (model.training or uses_batch_statistics(model)):
        raise ValueError(
            "drop_fooled given for a model that normalises by the batch; accepted: population statistics in eval mode"
        )
    if step_size is None:
        step_size = default_step_size(eps, steps)
    rule = partial(ascend, eps=eps, step_size=step_size, norm=norm)
    search = until_fooled if drop_fooled else every_iterate
    found = Found(x, torch.zeros_like(y, dtype=torch.bool))
    for restart in range(restarts):
        drawn = restart > 0 or generator is not None
        start = uniform_start(x, eps, norm, generator) if drawn else torch.zeros_like(x)
        found = search(model, x, y, start, rule, steps, found)
    return found.images


class Found(NamedTuple):
    """What an attack has so far."""

    images: Tensor  # (N, C, H, W): the newest that fools the model, else the newest
    fooled: Tensor  # (N,), bool

    def after(self, images: Tensor, wrong: Tensor) -> "Found":
        """What it has once `images` were judged: `wrong` (N,) where they fool the model."""
        kept = torch.where((wrong | ~self.fooled)[:, None, None, None], images, self.images)
        return Found(kept, self.fooled | wrong)


Rule = Callable[[Tensor, Tensor, Tensor], Tensor]  # delta, gradient, x -> next delta


def every_iterate(model: nn.Module, x: Tensor, y: Tensor, delta: Tensor, rule: Rule, steps: int, found: Found) -> Found:
    """Goes all the way with all examples; nothing here waits for the device."""
    for _ in range(steps):
        images = x + delta
        grad, logits = input_gradient(model, images, summed_cross_entropy(y))
        found = found.after(images, ~is_correct(logits, y))
        delta = rule(delta, grad, x)
    return found.after(x + delta, ~classified(model, x + delta, y))


def until_fooled(model: nn.Module, x: Tensor, y: Tensor, delta: Tensor, rule: Rule, steps: int, found: Found) -> Found:
    """Goes on with those examples only that have not fooled the model yet."""
    images, fooled = found.images.clone(), found.fooled.clone()
    active = (~fooled).nonzero().squeeze(1)
    x, y, delta = x[active], y[active], delta[active]
    for _ in range(steps):
        if not len(active):
            return Found(images, fooled)
        grad, logits = input_gradient(model, x + delta, summed_cross_entropy(y))
        right = is_correct(logits, y)
        images[active], fooled[active] = x + delta, ~right
        active, x, y = active[right], x[right], y[right]
        delta = rule(delta[right], grad[right], x)
    images[active], fooled[active] = x + delta, ~classified(model, x + delta, y)
    return Found(images, fooled)


def robust_mask(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, batch_size: int) -> Tensor:
    """Which examples the model, in eval mode, classifies correctly both clean and attacked.

    What it misclassifies clean is not attacked, unless the model normalises by the inference
    batch: then each batch is attacked whole, as it was classified.

    Args:
        model: Images to logits; every submodule's mode is restored.
        x: (N, C, H, W), in [0, 1].
        y: (N,), labels.
        attack: Finds the images to judge, e.g. `partial(pgd, eps=8 / 255)`.
        batch_size: Examples per call of the model.

    Returns:
        (N,), bool.
    """
    with evaluating(model):
        robust = batched_classified(model, x, y, batch_size)
        worth_attacking = torch.ones_like(robust) if uses_batch_statistics(model) else robust
        for index in worth_attacking.nonzero().squeeze(1).split(batch_size):
            if len(index):
                robust[index] &= classified(model, attack(model, x[index], y[index]), y[index])
    return robust


class ContinuousPgd:
    """Judges by `pgd` with a batch of constant size: an example that is finished leaves its slot to the next in line.

    The robust examples are those of `robust_mask` with `pgd(..., drop_fooled=True)` and the same generator:
    an example's iterates don't depend on its batch-mates. No shape depends on data, so on CUDA an iteration, which is
    one gradient for each slot, is a graph, and only every few iterations ask whether anybody is left.

    Args:
        model: Images to logits; may be trained on between calls.
        shape: (C, H, W) of the images.
        capacity: How many examples can stand in line; rounded up to whole batches.
        graphs: Captures the iteration.
        eps: Radius in pixel units.
        steps: Gradients per example.
        step_size: In pixel units; None: 2.5·eps/steps.
        norm: `linf` or `l2`.
        batch_size: Slots.

    Raises:
        ValueError: If `eps` is negative, `norm` unknown, or an example's logits depend on its batch-mates.
    """

    POLL = 4  # iterations between two questions to the device

    def __init__(
        self,
        model: nn.Module,
        shape: tuple[int, int, int],
        capacity: int,
        graphs: Graphs,
        *,
        eps: float,
        steps: int,
        step_size: float | None = None,
        norm: str = "linf",
        batch_size: int,
    ) -> None:
        require_ball(eps, norm)
        if uses_batch_statistics(model):
            raise ValueError("model given that normalises by the batch; accepted: population statistics")
        self.model, self.graphs, self.eps, self.norm = model, graphs, eps, norm
        self.steps, self.batch_size, self.key = steps, batch_size, object()
        self.rule = partial(ascend, eps=eps, step_size=step_size or default_step_size(eps, steps), norm=norm)
        self.capacity = -(-capacity // batch_size) * batch_size

        def empty(n: int) -> Tensor:
            zeros = torch.zeros((n, *shape), device=graphs.device)
            return zeros.contiguous(memory_format=torch.channels_last)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=graphs.device)

        # The line, and behind it one row that stands for nobody.
        self.images, self.starts = empty(self.capacity + 1), empty(self.capacity + 1)
        self.labels = integers(self.capacity + 1)
        self.fooled = torch.zeros(self.capacity + 1, dtype=torch.bool, device=graphs.device)
        self.n, self.next = integers(1), integers(1)  # length of the line, and who gets the next free slot
        # The slots: who has it (`capacity`: nobody), with what perturbation, after how many steps.
        self.example, self.delta, self.taken = integers(batch_size), empty(batch_size), integers(batch_size)
        self.n_active = integers(1)

    def robust_mask(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Which examples the model, in eval mode, classifies correctly both clean and at every iterate.

        Args:
            x: (N, C, H, W), in [0, 1].
            y: (N,), labels.
            generator: On the device of `x`; draws each start uniformly. None starts at `x`.

        Returns:
            (N,), bool.
        """
        with evaluating(self.model):
            state = [self.fooled, self.next, self.example, self.delta, self.taken, self.n_active]
            self.graphs.prepare(self.key, self._iterate, state)
            robust = batched_classified(self.model, x, y, self.batch_size)
            for index in robust.nonzero().squeeze(1).split(self.capacity):
                if len(index):
                    robust[index] &= ~self._fooled(x[index], y[index], generator)
        return robust

    def _fooled(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Tensor:
        n, capacity = len(x), self.capacity
        self.images[:n].copy_(x)
        self.labels[:n].copy_(y)
        for start, images in zip(self.starts[:n].split(self.batch_size), x.split(self.batch_size), strict=True):
            start.copy_(random_start(images, self.eps, self.norm, generator))
        self.n.fill_(n)
        self.fooled.zero_()
        self.next.fill_(min(n, self.batch_size))
        self.example.fill_(capacity)
        self.example[:n] = torch.arange(min(n, self.batch_size), device=self.example.device)
        self.delta.copy_(self.starts[self.example])
        self.taken.zero_()
        self.n_active.fill_(n)
        while self.n_active.item():
            for _ in range(self.POLL):
                self.graphs.run(self.key, self._iterate)
        return self.fooled[:n].clone()

    def _iterate(self) -> None:
        """Judges every slot's image and moves it one step on, or hands the slot over."""
        x, y = self.images[self.example], self.labels[self.example]
        images = (x + self.delta).contiguous(memory_format=torch.channels_last)
        grad, logits = input_gradient(self.model, images, summed_cross_entropy(y))
        wrong = ~is_correct(logits, y)
        self.fooled.scatter_(0, self.example, wrong)  # slots that nobody has write to nobody's row
        active = self.example < self.capacity
        finished = active & (wrong | (self.taken == self.steps))
        successor = self.next + finished.cumsum(0) - 1
        # Not torch.where, which would copy a number from the host to the device.
        successor = successor.masked_fill(successor >= self.n, self.capacity)
        self.next += finished.sum()
        self.example.copy_(torch.where(finished, successor, self.example))
        moved = torch.where(finished[:, None, None, None], self.starts[self.example], self.rule(self.delta, grad, x))
        self.delta.copy_(moved)
        self.taken.add_(1).masked_fill_(finished, 0)
        self.n_active.copy_((self.example < self.capacity).sum())


def robust_accuracy(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, batch_size: int) -> float:
    """Fraction of examples classified correctly both clean and attacked; arguments as in `robust_mask`."""
    return fraction(robust_mask(model, x, y, attack, batch_size))


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> float:
    """Fraction of examples that the model, in eval mode, classifies correctly; every submodule's mode is restored."""
    with evaluating(model):
        return fraction(batched_classified(model, x, y, batch_size))


def batched_classified(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([classified(model, images, labels) for images, labels in batches])


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Whether the model classifies each image correctly: (N,), bool."""
    with torch.no_grad():
        return is_correct(model(x), y)


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """(N,), bool. A NaN counts as an error: argmax would take it for the largest logit."""
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def fraction(mask: Tensor) -> float:
    """Raises:
    ValueError: If there are no examples.
    """
    if not len(mask):
        raise ValueError("no examples given; accepted: at least one")
    return mask.sum().item() / len(mask)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each submodule is in the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def require_ball(eps: float, norm: str) -> None:
    if not eps >= 0:  # as neither is nan
        raise ValueError(f"eps {eps} given; accepted: at least 0")
    ball(norm)
