"""The baseline of benchmarks.throughput: a search as Ray Tune's and Fixup's public examples write it.

Written after two examples, whose manners it keeps:
* ray/tune/examples/cifar10_pytorch.py of Ray 2.60: a function that trains, images as PIL through ToTensor and
  Normalize in a DataLoader, `loss.item()` at each step, `torch.save` into a Tune checkpoint and `tune.report` after
  each epoch, a fresh actor per trial, every checkpoint kept.
* cifar/cifar_train.py of github.com/hongyi-zhang/Fixup: two worker processes for each of the two loaders (Ray's
  example has eight), whole validation batches, a tenth of the learning rate for Fixup's scalars.

Torch is left as it is by default: its convolutions, threads as Ray sets them (OMP_NUM_THREADS is the trial's CPUs),
contiguous memory format, SGD neither fused nor foreach on CPUs, no persistent workers, nothing pinned. The attack is
torchattacks' PGD.
"""

import os
import tempfile
import time
from collections.abc import Callable

import torch
import torchattacks
from PIL import Image
from ray import tune
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from trainables import batch_schedules, data
from trainables.attacks import EVAL_BATCH, default_step_size
from trainables.config import EvalConfig, TrialConfig
from trainables.resnet import Conv3x3, parameter_groups, resnet

N_WORKERS = 2


class Images(Dataset):
    """Grey images of a split as torchvision's data sets hand them out: a PIL image, made and transformed when asked."""

    def __init__(self, split: data.Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.labels, self.transform = split.images[:, 0].numpy(), split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def with_torchs_convolutions(net: nn.Module) -> nn.Module:
    """The same network and weights, without this project's own way of convolving 2x2 pixels."""
    for module in list(net.modules()):
        for name, conv in module.named_children():
            if isinstance(conv, Conv3x3):
                plain = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=False)
                plain.weight = conv.weight
                setattr(module, name, plain)
    return net


def train(config: dict[str, dict[str, object]]) -> None:
    """Tune's function trainable: one natural training at a constant LR/batch ratio on digits.

    Args:
        config: `trial` and `evaluation`, fields of TrialConfig and EvalConfig.
    """
    trial, evaluation = TrialConfig(**config["trial"]), EvalConfig(**config["evaluation"])
    torch.manual_seed(trial.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    digits = data.load("digits")
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(digits.mean, digits.std)])
    trainset, validation = Images(digits.train, transform), Images(digits.validation, transform)

    generator = torch.Generator().manual_seed(trial.seed)  # the weights that the other side starts from
    net = resnet(trial.depth, digits.num_classes, digits.in_channels, trial.norm, generator=generator)
    net = with_torchs_convolutions(net).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(parameter_groups(net), lr=0.1, momentum=trial.momentum, weight_decay=trial.weight_decay)
    step_size = default_step_size(evaluation.eps, evaluation.attack_steps)
    attack = torchattacks.PGD(net, eps=evaluation.eps, alpha=step_size, steps=evaluation.attack_steps)
    attack.set_normalization_used(digits.mean, digits.std)

    train_seconds = 0.0
    sizes = batch_schedules.batch_sizes(trial.batch_size_schedule, trial.epochs)
    for epoch, size in enumerate(sizes, start=1):
        for group in optimizer.param_groups:
            group["lr"] = trial.lr_batch_ratio * size * group["lr_factor"]
        trainloader = DataLoader(trainset, batch_size=size, shuffle=True, num_workers=N_WORKERS)
        start = time.perf_counter()
        loss = train_epoch(net, trainloader, criterion, optimizer, device)
        train_seconds += time.perf_counter() - start

        n_examples = evaluation.examples if epoch == trial.epochs else evaluation.curve_examples
        subset = Subset(validation, range(min(n_examples, len(validation))))
        valloader = DataLoader(subset, batch_size=EVAL_BATCH, shuffle=False, num_workers=N_WORKERS)
        clean_accuracy, adversarial_accuracy = evaluate(net, valloader, attack, device)

        with tempfile.TemporaryDirectory() as folder:
            torch.save((net.state_dict(), optimizer.state_dict()), os.path.join(folder, "checkpoint.pt"))
            tune.report(
                {
                    "epoch": epoch,
                    "train_seconds": train_seconds,
                    "train_loss": loss,
                    "clean_accuracy": clean_accuracy,
                    "adversarial_accuracy": adversarial_accuracy,
                    "n_examples": len(subset),
                },
                checkpoint=tune.Checkpoint.from_directory(folder),
            )


def train_epoch(
    net: nn.Module, loader: DataLoader, criterion: nn.Module, optimizer: optim.Optimizer, device: str
) -> float:
    """One pass over `loader`; returns the mean of its batches' losses."""
    net.train()
    running_loss = 0.0
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(net(inputs), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return running_loss / len(loader)


def evaluate(net: nn.Module, loader: DataLoader, attack: torchattacks.PGD, device: str) -> tuple[float, float]:
    """Fraction of examples classified correctly clean, and both clean and attacked."""
    net.eval()
    total = n_clean = n_robust = 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        adversarial = attack(images, labels)
        with torch.no_grad():
            clean = net(images).argmax(1) == labels
            robust = clean & (net(adversarial).argmax(1) == labels)
        total += len(labels)
        n_clean += clean.sum().item()
        n_robust += robust.sum().item()
    return n_clean / total, n_robust / total
