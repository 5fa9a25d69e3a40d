"""The optimizer."""

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from trainables.resnet import parameter_groups


class SGD:
    """SGD with momentum in torch's fused kernels, on tensors that stay where they are; nothing moves before `set_lr`.

    Each group's `lr` is a float32 tensor on the parameters' device: the kernels read it there, so a captured CUDA
    graph sees a new rate, where a number would be baked in. Momentum starts from zeros, since torch's own first step
    is another one than the rest.

    `torch.optim.SGD` does the same around the same function, but at its first step it imports torch's compiler: two
    seconds and 150 MB for each worker.

    Args:
        model: Its parameters are updated, in the groups of `parameter_groups`.
        momentum: 0 for none.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Of every parameter.
    """

    def __init__(self, model: nn.Module, *, momentum: float, nesterov: bool, weight_decay: float) -> None:
        device = next(model.parameters()).device
        self.groups = [{**group, "lr": torch.zeros((), device=device)} for group in parameter_groups(model)]
        for group in self.groups:
            group["momentum"] = [torch.zeros_like(parameter) if momentum else None for parameter in group["params"]]
        # How gradients become a step.
        self.rule = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}

    @property
    def rates(self) -> list[Tensor]:
        """One per group."""
        return [group["lr"] for group in self.groups]

    @property
    def momentum(self) -> list[Tensor]:
        """One per parameter, none without momentum."""
        return [buffer for group in self.groups for buffer in group["momentum"] if buffer is not None]

    def set_lr(self, lr: float | Tensor) -> None:
        """Sets every group's rate, in place, to `lr` times its `lr_factor`; a tensor is float64, on the device."""
        for group in self.groups:
            rate = lr * group["lr_factor"]
            group["lr"].copy_(rate) if isinstance(rate, Tensor) else group["lr"].fill_(rate)

    @torch.no_grad()
    def step(self, skip: Tensor) -> None:
        """Moves all parameters down their gradients, none of which may be missing.

        Args:
            skip: Scalar, float32, read on the device: at 1 nothing changes, at 0 all does.
        """
        for group in self.groups:
            gradients = [parameter.grad for parameter in group["params"]]
            sgd(
                group["params"],
                gradients,
                group["momentum"],
                fused=True,
                found_inf=skip,
                lr=group["lr"],
                dampening=0.0,
                maximize=False,
                **self.rule,
            )

    def zero_grad(self) -> None:
        """Frees the gradients."""
        for group in self.groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, object]:
        """Laid out as torch's optimizers lay out theirs."""
        return {"state": {number: {"momentum_buffer": buffer} for number, buffer in enumerate(self.momentum)}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, object]) -> None:
        """Takes the momentum of `state`, in place: a captured graph goes on using the tensors that it knows."""
        for number, buffer in enumerate(self.momentum):
            buffer.copy_(state["state"][number]["momentum_buffer"])
