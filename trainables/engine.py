"""One update, the optimizer that makes it, and one pass over the training images."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from trainables.attacks import Attack
from trainables.data import Split, augment, to_float
from trainables.resnet import parameter_groups

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def train_step(model: nn.Module, optimizer: Optimizer, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    """One update on the worst images `attack` finds near `x`; returns the mean loss.

    Args:
        model: Images to logits, in train mode.
        optimizer: Updates the model's parameters.
        attack: Clean training's is the identity.
        x: (N, C, H, W), in [0, 1].
        y: (N,), labels.

    Returns:
        Scalar, detached: reading it is what waits for the device.
    """
    x = attack(model, x, y)
    return update(optimizer, F.cross_entropy(model(x), y))


def update(optimizer: Optimizer, loss: Tensor) -> Tensor:
    """One step down `loss`, which comes back detached."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def make_optimizer(model: nn.Module, *, momentum: float, nesterov: bool, weight_decay: float) -> SGD:
    """SGD over the model's parameter groups; nothing moves before `set_lr`.

    Each group's `lr` is a float32 tensor on the parameters' device: fused kernels read it there,
    so a captured CUDA graph sees a new rate, where a number would be baked in.
    """
    device = next(model.parameters()).device
    fused = device.type in FUSED_DEVICES
    groups = [{**group, "lr": torch.zeros((), device=device)} for group in parameter_groups(model)]
    return SGD(groups, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused, foreach=not fused)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets every group's rate to `lr` times its `lr_factor`, in place."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr * group["lr_factor"])


def batch(split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in [0, 1], channels last, and labels (N,) of the examples at `index`."""
    images = to_float(split.images[index]).contiguous(memory_format=torch.channels_last)
    return images, split.labels[index]


def train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    step: Callable[[nn.Module, Optimizer, Tensor, Tensor], Tensor],
    split: Split,
    augmentation: str,
    batch_size: int,
    lrs: Sequence[float],
    generator: torch.Generator,
) -> Tensor:
    """One pass over `split` in random order; every example is met once, the last batch may be smaller.

    Args:
        step: One update on a batch; returns its mean loss.
        lrs: The learning rate of each step.
        generator: On the split's device; draws order and augmentation.

    Returns:
        Scalar, the examples' mean loss. Nothing before it waits for the device.
    """
    model.train()
    images = Split(augment(split.images, augmentation, generator), split.labels)
    order = torch.randperm(len(split), generator=generator, device=split.labels.device)
    total = torch.zeros((), device=split.labels.device)
    for lr, index in zip(lrs, order.split(batch_size), strict=True):
        set_lr(optimizer, lr)
        total += step(model, optimizer, *batch(images, index)) * len(index)
    return total / len(split)
