"""One update, and passes over images that stay on the device.

A step has no host work that depends on data and no tensor that moves, so on CUDA it is captured as a graph
(cuda_graphs.py) and replayed; elsewhere the same function runs as it is. docs/engine.md says what that asks for.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.attacks import Attack
from trainables.cuda_graphs import Graphs
from trainables.data import Split, augment, to_float
from trainables.sgd import SGD

# model, optimizer, images (N, C, H, W) in [0, 1], labels (N,) -> mean loss, detached. A step that carries tensors from
# batch to batch makes them in `carry`.
Step = Callable[[nn.Module, SGD, Tensor, Tensor], Tensor]

# What torch computes float32 convolutions with on CUDA. Elsewhere float32 is float32.
CONVOLUTIONS = {"fp32": "ieee", "tf32": "tf32", "bf16": "tf32"}


def train_step(model: nn.Module, optimizer: SGD, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
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


def update(optimizer: SGD, loss: Tensor) -> Tensor:
    """One step down `loss`, which comes back detached; a loss that is not finite changes nothing.

    Gradients do not outlive the step: in a captured graph their memory serves other tensors afterwards.
    """
    loss.backward()
    loss = loss.detach()
    optimizer.step(skip=(~loss.isfinite()).float())
    optimizer.zero_grad()
    return loss


def batch(split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in [0, 1], channels last, and labels (N,) of the examples at `index`."""
    images = to_float(split.images[index]).contiguous(memory_format=torch.channels_last)
    return images, split.labels[index]


class Autocast(nn.Module):
    """The same model, computing in bfloat16 where torch's autocast allows; float32 images to float32 logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        # No cache of cast weights: some steps update them between two passes.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            logits = self.model(x)
        return logits.float()


@contextmanager
def convolving_in(precision: str) -> Iterator[None]:
    """Float32 convolutions on CUDA in `fp32` or `tf32` (also for `bf16`); matrix products always in strict fp32."""
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    convolutions.fp32_precision, products.fp32_precision = CONVOLUTIONS[precision], "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before


class Trainer:
    """Makes passes over `split`, each image met once, in random order; the last batch may be smaller.

    Which batch comes next, its rate and the summed loss lie on the device, in tensors that change in place. So
    does all else that a step changes, and a step is the same sequence of kernels each time.

    Args:
        model: Images to logits.
        optimizer: Of the model's parameters.
        step: One update on a batch.
        split: Its images are uint8, or float32 in [0, 1].
        augmentation: A key of `data.AUGMENTATIONS`, applied once per pass.
        generator: On the split's device; draws order and augmentation, and what `step` draws.
        graphs: Captures steps, one per batch size.
        precision: `tf32`, `fp32` or `bf16`, of convolutions on CUDA; `bf16` is autocast, on any device.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: SGD,
        step: Step,
        split: Split,
        augmentation: str,
        generator: torch.Generator,
        graphs: Graphs,
        precision: str = "tf32",
    ) -> None:
        self.model, self.optimizer, self.step, self.split = model, optimizer, step, split
        self.augmentation, self.generator, self.graphs, self.precision = augmentation, generator, graphs, precision
        self.carried: list[Tensor] = step.carry(split.images) if hasattr(step, "carry") else []
        self.key = object()
        self.computing = Autocast(model) if precision == "bf16" else model
        device, n = split.labels.device, len(split)
        augmented = split.images if augmentation == "none" else split.images.clone()
        self.images = Split(augmented, split.labels)
        self.order, self.offsets = torch.arange(n, device=device), torch.arange(n, device=device)
        self.lrs = torch.zeros(n, dtype=torch.float64, device=device)  # of each step; float64 as on the host
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # images met in this pass
        self.number = torch.zeros(1, dtype=torch.int64, device=device)  # steps made in this pass
        self.total = torch.zeros((), device=device)  # summed loss of the images met

    def train_epoch(self, batch_size: int, lrs: Sequence[float]) -> Tensor:
        """One pass.

        Args:
            batch_size: Images per step.
            lrs: The learning rate of each step.

        Returns:
            Scalar, the examples' mean loss. Nothing before it waits for the device.
        """
        self.prepare(batch_size)
        sizes = self._sizes(batch_size)
        assert len(lrs) == len(sizes), "one rate per step"
        with self._training():
            self._begin(lrs)
            for size in sizes:
                self._run(size)
        return self.total / len(self.split)

    def prepare(self, batch_size: int) -> None:
        """Makes the steps of that batch size ready; does nothing the second time, and nothing that training notices."""
        self._prepare(self._sizes(batch_size))

    def _prepare(self, sizes: Sequence[int]) -> None:
        self._rewind()  # for the trial runs: the last pass may have ended at the last image
        with self._training():
            for size in sorted(set(sizes), reverse=True):
                self.graphs.prepare((self.key, size), partial(self._step, size), self._state())

    def seconds(self, batch_size: int, n_steps: int) -> float:
        """Seconds that `n_steps` steps take with their share of what each pass begins with; changes nothing."""
        size = min(batch_size, len(self.split))
        self._prepare([size])
        in_a_pass = len(self.split) // size
        with self.graphs.unchanged(self._state()), self._training():
            beginning = -self._now()
            self._begin([0.0] * in_a_pass)
            beginning += self._now()
            steps = -self._now()
            for number in range(n_steps):
                if number % in_a_pass == 0:
                    self._rewind()
                self._run(size)
            steps += self._now()
        return steps + beginning * n_steps * size / len(self.split)

    def _run(self, size: int) -> None:
        self.graphs.run((self.key, size), partial(self._step, size))

    def _step(self, size: int) -> None:
        """One update on the next `size` images of the pass."""
        index = self.order.index_select(0, self.position + self.offsets[:size])
        self.optimizer.set_lr(self.lrs.index_select(0, self.number).squeeze(0))
        self.total += self.step(self.computing, self.optimizer, *batch(self.images, index)) * size
        self.position += size
        self.number += 1

    def _begin(self, lrs: Sequence[float]) -> None:
        # First, since a copy from the host waits for what the device has been asked before.
        self.lrs[: len(lrs)].copy_(torch.tensor(lrs, dtype=torch.float64))
        if self.augmentation != "none":
            self.images.images.copy_(augment(self.split.images, self.augmentation, self.generator))
        n = len(self.split)
        self.order.copy_(torch.randperm(n, generator=self.generator, device=self.order.device))
        self.total.zero_()
        self._rewind()

    def _rewind(self) -> None:
        self.position.zero_()
        self.number.zero_()

    def _sizes(self, batch_size: int) -> list[int]:
        """Of each batch of a pass."""
        n_full, rest = divmod(len(self.split), batch_size)
        return [batch_size] * n_full + [rest] * (rest > 0)

    def _state(self) -> list[Tensor]:
        """All that a step changes."""
        learnt = [*self.model.parameters(), *self.model.buffers(), *self.optimizer.momentum, *self.carried]
        return [*learnt, *self.optimizer.rates, self.position, self.number, self.total]

    @contextmanager
    def _training(self) -> Iterator[None]:
        self.model.train()
        with convolving_in(self.precision):
            yield

    def _now(self) -> float:
        if self.order.is_cuda:
            torch.cuda.synchronize(self.order.device)
        return time.perf_counter()
