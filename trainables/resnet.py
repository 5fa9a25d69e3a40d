"""Residual networks of the CIFAR kind: depth 6n+2, stages of 16, 32 and 64 channels."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables import norms
from trainables.depth import six_n_plus_two

if TYPE_CHECKING:  # which needs pydantic; a network doesn't
    from trainables.config import EvalStatistics

CHANNELS = (16, 32, 64)

MakeBlock = Callable[[int, int, int], nn.Module]  # channels in, channels out, stride


def resnet(
    depth: int,
    num_classes: int,
    in_channels: int,
    norm: str,
    *,
    eval_statistics: "EvalStatistics" = "population",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A freshly initialised network: images (N, C, H, W) in [0, 1] to logits (N, num_classes).

    Args:
        depth: Weighted layers, 6n+2: three stages of n blocks of two, and two more.
        num_classes: Logits per image.
        in_channels: C of the images; any H and W that survive two halvings, e.g. 8 or 32.
        norm: `batchnorm`, `robustnorm`, `groupnorm` or `fixup`.
        eval_statistics: What normalises in eval mode: the `population`'s statistics or the inference `batch`'s.
        mean: Per-channel mean that the first layer subtracts; None: 0.
        std: Per-channel deviation that the first layer divides by; None: 1.
        generator: Draws the weights; None: torch's global one.

    Raises:
        ValueError: If `depth`, `norm` or `eval_statistics` is unknown, or `mean` or `std` doesn't fit `in_channels`.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2; for `fixup` see `FixupBlock`.
    """
    n_blocks = (six_n_plus_two(depth) - 2) // 6
    standardize = Standardize(
        (0.0,) * in_channels if mean is None else mean, (1.0,) * in_channels if std is None else std, in_channels
    )
    if norm == "fixup":
        if eval_statistics != "population":
            raise ValueError(f"eval_statistics {eval_statistics!r} given with fixup; accepted: 'population'")
        return fixup_network(standardize, n_blocks, num_classes, in_channels, generator)
    if norm not in norms.NORMS:
        raise ValueError(f"unknown norm {norm!r}; choose from {sorted([*norms.NORMS, 'fixup'])}")
    return normalised_network(
        standardize, n_blocks, num_classes, in_channels, norms.norm(norm, eval_statistics), generator
    )


def normalised_network(
    standardize: nn.Module,
    n_blocks: int,
    num_classes: int,
    in_channels: int,
    norm: norms.Norm,
    generator: torch.Generator | None,
) -> nn.Module:
    """The network of He et al., `norm` after each convolution."""
    network = nn.Sequential(
        OrderedDict(
            standardize=standardize,
            stem=nn.Sequential(conv3x3(in_channels, CHANNELS[0]), norm(CHANNELS[0]), nn.ReLU()),
            stages=stages(n_blocks, lambda n_in, n_out, stride: Block(n_in, n_out, stride, norm)),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            classifier=nn.Linear(CHANNELS[-1], num_classes),
        )
    )
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d):
            he_init(conv, generator)
    # Fan-in with unit gain: logits as large as the features.
    nn.init.kaiming_normal_(network.classifier.weight, nonlinearity="linear", generator=generator)
    nn.init.zeros_(network.classifier.bias)
    return network


def fixup_network(
    standardize: nn.Module, n_blocks: int, num_classes: int, in_channels: int, generator: torch.Generator | None
) -> nn.Module:
    """The network of Zhang, Dauphin and Ma: no normalisation, and all logits zero at first."""
    network = nn.Sequential(
        OrderedDict(
            standardize=standardize,
            stem=nn.Sequential(conv3x3(in_channels, CHANNELS[0]), Shift(), nn.ReLU()),
            stages=stages(n_blocks, FixupBlock),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Shift()),
            classifier=nn.Linear(CHANNELS[-1], num_classes),
        )
    )
    he_init(network.stem[0], generator)
    for block in network.stages:
        block.initialise(len(network.stages), generator)
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    return network


def stages(n_blocks: int, block: MakeBlock) -> nn.Sequential:
    """Three stages of `n_blocks` blocks; the second and third start by halving height and width."""
    blocks, n_in = [], CHANNELS[0]
    for n_out in CHANNELS:
        for _ in range(n_blocks):
            blocks.append(block(n_in, n_out, 1 if n_in == n_out else 2))
            n_in = n_out
    return nn.Sequential(*blocks)


def conv3x3(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    return Conv3x3(n_in, n_out) if stride == 1 else nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)


def he_init(conv: nn.Conv2d, generator: torch.Generator | None) -> None:
    """Normal, std sqrt(2 / (k·k·channels out)). Source: He et al. 2015, arXiv:1502.01852, backward case."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)


def shortcut(x: Tensor, n_out: int, stride: int) -> Tensor:
    """Identity without parameters: every `stride`-th pixel, zeros for the channels that `x` lacks (option A)."""
    if stride == 1:
        return x
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, n_out - x.shape[1]))


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps height and width; on CPUs, one of a 2x2 image is a matrix product.

    Each pixel there sees the whole image, through four of its nine taps. The product leaves out the terms with padding,
    and its gradients too are products, where oneDNN is slow: docs/engine.md has the times.
    """

    taps: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, 3, padding=1, bias=False)
        pixels = torch.cartesian_prod(torch.arange(2), torch.arange(2))
        row, column = (pixels - pixels[:, None] + 1).unbind(-1)  # of the tap from a pixel (out) to a pixel (in)
        taps = 9 * torch.arange(n_out)[:, None] + (3 * row + column)[:, None]  # (out, n_out, in)
        self.register_buffer("taps", taps.flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (2, 2) or x.device.type != "cpu":
            return super().forward(x)
        taps = self.weight.permute(0, 2, 3, 1).reshape(-1, self.in_channels)  # a view where channels are last
        matrix = taps.index_select(0, self.taps).view(4 * self.out_channels, 4 * self.in_channels)
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), matrix)
        return y.view(-1, 2, 2, self.out_channels).permute(0, 3, 1, 2)


class Standardize(nn.Module):
    """(x - mean) / std per channel; both are saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], in_channels: int) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != in_channels:
                raise ValueError(f"{name}: {len(values)} values given; accepted: one per channel ({in_channels})")
            self.register_buffer(name, torch.tensor(values).float()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Block(nn.Module):
    """Two convolutions, each normalised, around an identity."""

    def __init__(self, n_in: int, n_out: int, stride: int, norm: norms.Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(n_in, n_out, stride), norm(n_out)
        self.conv2, self.norm2 = conv3x3(n_out, n_out), norm(n_out)
        self.n_out, self.stride = n_out, stride

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + shortcut(x, self.n_out, self.stride))


class FixupBlock(nn.Module):
    """Two convolutions around an identity, with scalar biases and one scalar multiplier instead of normalisation.

    Source: Zhang, Dauphin, Ma 2019, Fixup Initialization, arXiv:1901.09321, and the authors' CIFAR
    basic block, whose subsampling shortcut starts after the first bias.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv3x3(n_in, n_out, stride), conv3x3(n_out, n_out)
        self.before_conv1, self.before_relu, self.before_conv2, self.after_scale = Shift(), Shift(), Shift(), Shift()
        self.scale = nn.Parameter(torch.ones(1))
        self.n_out, self.stride = n_out, stride

    def initialise(self, n_blocks: int, generator: torch.Generator | None) -> None:
        """He's, scaled by L^(-1/(2m-2)) with m = 2 layers a branch in L = `n_blocks` branches; zero for the last."""
        he_init(self.conv1, generator)
        with torch.no_grad():
            self.conv1.weight.mul_(n_blocks**-0.5)
        nn.init.zeros_(self.conv2.weight)

    def branch(self, shifted: Tensor) -> Tensor:
        y = F.relu(self.before_relu(self.conv1(shifted)))
        return self.after_scale(self.conv2(self.before_conv2(y)) * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.before_conv1(x)
        identity = x if self.stride == 1 else shortcut(shifted, self.n_out, self.stride)
        return F.relu(self.branch(shifted) + identity)


class Shift(nn.Module):
    """Adds one learnt scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """Parameters for an optimizer, in groups of one `lr_factor` each.

    With Fixup the scalars and the classifier's bias learn at a tenth of the rate, as in the
    authors' code; otherwise all parameters are one group.
    """
    if not any(isinstance(module, FixupBlock) for module in model.modules()):
        return [{"params": list(model.parameters()), "lr_factor": 1.0}]
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    scalars = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return [{"params": weights, "lr_factor": 1.0}, {"params": scalars, "lr_factor": 0.1}]
