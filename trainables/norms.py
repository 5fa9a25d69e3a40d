"""Normalisations of a residual network's channels."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:  # which needs pydantic; a layer doesn't
    from trainables.config import EvalStatistics

Norm = Callable[[int], nn.Module]  # number of channels -> layer on (N, C, H, W)

N_GROUPS = 8


class RobustNorm2d(nn.Module):
    """Per channel: (x - mean) / (max - min)^power, then scale and shift.

    Running statistics change in place, so a captured CUDA graph goes on updating them.

    Args:
        num_features: Channels C of the (N, C, H, W) input; statistics are over N, H, W.
        power: Exponent of the range.
        eval_statistics: In eval mode, `batch` takes those of the inference batch, `population` the running ones.
        eps: Smallest range divided by; larger ranges follow the formula exactly.
        momentum: Weight of the newest batch in the running statistics.
        affine: Whether a scale and a shift per channel are learnt.

    Raises:
        ValueError: If `eval_statistics` is neither of the two.

    Source: Awais, Shamshad, Bae 2020, Towards an Adversarially Robust Normalization Approach, arXiv:2006.11007.
    """

    running_mean: Tensor
    running_range: Tensor

    def __init__(
        self,
        num_features: int,
        power: float = 0.2,
        eval_statistics: "EvalStatistics" = "batch",
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__()
        require_statistics(eval_statistics)
        self.power, self.eval_statistics, self.eps, self.momentum = power, eval_statistics, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_range", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.eval_statistics == "batch":
            mean, spread = x.mean((0, 2, 3)), x.amax((0, 2, 3)) - x.amin((0, 2, 3))
        else:
            mean, spread = self.running_mean, self.running_range
        if self.training:
            self._follow(mean.detach(), spread.detach())
        scale = spread.clamp_min(self.eps).pow(-self.power)
        if self.weight is not None:
            scale = scale * self.weight
        y = (x - per_channel(mean)) * per_channel(scale)
        return y if self.bias is None else y + per_channel(self.bias)

    def _follow(self, mean: Tensor, spread: Tensor) -> None:
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_range.lerp_(spread.to(self.running_range.dtype), self.momentum)

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, power={self.power}, eval_statistics={self.eval_statistics!r}"


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that can take the inference batch's statistics in eval mode.

    With `eval_statistics="batch"` eval mode leaves the running statistics alone. The state has
    torch's names, but `num_batches_tracked` stays 0: counting would cost a kernel a layer, for nothing.

    Raises:
        ValueError: If `eval_statistics` is neither `population` nor `batch`.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    def __init__(self, num_features: int, eval_statistics: "EvalStatistics" = "population") -> None:
        super().__init__(num_features)
        require_statistics(eval_statistics)
        self.eval_statistics = eval_statistics

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.eval_statistics == "batch":
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


def groupnorm(num_features: int, eval_statistics: "EvalStatistics" = "population") -> nn.Module:
    """Group normalisation: statistics of each example by itself, in training and in eval mode alike.

    8 groups divide 16, 32 and 64 channels. With 16 the first stage would have one channel a
    group, which is instance normalisation and takes each channel's mean and contrast away.

    Raises:
        ValueError: If `eval_statistics` is `batch`, which it has none of, or 8 doesn't divide the channels.

    Source: Wu and He 2018, arXiv:1803.08494.
    """
    if eval_statistics != "population":
        raise ValueError(f"eval_statistics {eval_statistics!r} given with groupnorm; accepted: 'population'")
    return nn.GroupNorm(N_GROUPS, num_features)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "batchnorm": BatchNorm2d,
    "robustnorm": RobustNorm2d,
    "groupnorm": groupnorm,
}


def norm(name: str, eval_statistics: "EvalStatistics" = "population") -> Norm:
    """The layer maker called `name`.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; choose from {sorted(NORMS)}")
    return partial(NORMS[name], eval_statistics=eval_statistics)


def uses_batch_statistics(model: nn.Module) -> bool:
    """Whether, in eval mode, an example's logits depend on its batch-mates: such a model must not be re-batched."""
    return any(
        getattr(module, "eval_statistics", "population") == "batch"
        or (isinstance(module, _BatchNorm) and module.running_mean is None)
        for module in model.modules()
    )


def require_statistics(name: str) -> None:
    if name not in ("population", "batch"):
        raise ValueError(f"unknown eval_statistics {name!r}; choose from ['batch', 'population']")


def per_channel(values: Tensor) -> Tensor:
    """(C,) to (C, 1, 1), which broadcasts over (N, C, H, W)."""
    return values[:, None, None]
