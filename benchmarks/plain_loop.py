"""The baselines of benchmarks.engine: training and PGD as public scripts write them, in plain eager torch.

Training is the loop of cifar/cifar_train.py of github.com/hongyi-zhang/Fixup: torchvision's transforms in a DataLoader,
`zero_grad`, `backward`, `step`, `loss.item()`. PGD training is that of github.com/locuslab/fast_adversarial,
CIFAR10/train_pgd.py, whose attack calls `backward` and so fills every weight's gradient too. As in Fixup's script cuDNN
shall time its kernels, which is for the caller to ask; otherwise torch is left as it is by default, so float32
convolutions are TF32 on GPUs that have it.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trainables.data import Split
from trainables.resnet import parameter_groups


class Images(Dataset):
    """Images of a split as torchvision's data sets hand them out: PIL, transformed when asked."""

    def __init__(self, split: Split) -> None:
        self.images = split.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.labels = split.labels.tolist()
        crop = transforms.RandomCrop(split.images.shape[2], padding=split.images.shape[2] // 8)
        self.transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def batches(split: Split, batch_size: int, n_workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches on the device, for ever."""
    pinned = device.type == "cuda"
    loader = DataLoader(
        Images(split), batch_size, shuffle=True, drop_last=True, num_workers=n_workers, pin_memory=pinned
    )
    while True:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


class Loop:
    """One model and the loop that trains it.

    Args:
        fast: channels_last, and autocast to bfloat16.
        attack: Of PGD training; None trains on clean images.
    """

    def __init__(self, model: nn.Module, fast: bool, attack: "Attack | None") -> None:
        self.model = model.train()
        if fast:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(parameter_groups(self.model), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.fast, self.attack, self.running_loss = fast, attack, 0.0

    def logits(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.fast):
            return self.model(images)

    def step(self, images: Tensor, labels: Tensor) -> None:
        if self.fast:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.attack is not None:
            images = images + self.attack(self.logits, images, labels)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.logits(images), labels)
        loss.backward()
        self.optimizer.step()
        self.running_loss += loss.item()


Attack = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]  # logits, images, labels -> perturbation


def pgd_by_backward(eps: float, step_size: float, steps: int) -> Attack:
    """fast_adversarial's: each step's `backward` computes the weights' gradients as well."""

    def attack(logits: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        delta = torch.zeros_like(images).uniform_(-eps, eps).requires_grad_()
        for _ in range(steps):
            F.cross_entropy(logits(images + delta), labels).backward()
            ascended = (delta.detach() + step_size * delta.grad.sign()).clamp(-eps, eps)
            delta.data = torch.max(torch.min(1 - images, ascended), 0 - images)
            delta.grad.zero_()
        return delta.detach()

    return attack


def pgd_as_torchattacks(
    model: nn.Module, eps: float, step_size: float, steps: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loop of torchattacks 3.5.1's PGD, for where it is not installed: random start, every step, last iterate."""

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        adversarial = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1).detach()
        for _ in range(steps):
            adversarial.requires_grad = True
            (grad,) = torch.autograd.grad(F.cross_entropy(model(adversarial), labels), adversarial)
            adversarial = adversarial.detach() + step_size * grad.sign()
            adversarial = (images + (adversarial - images).clamp(-eps, eps)).clamp(0, 1).detach()
        return adversarial

    return attack
