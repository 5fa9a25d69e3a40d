"""One trial: build, train epoch by epoch, evaluate, save, load."""

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from trainables import adversarial, batch_schedules, engine, lr_schedules, probes, timing
from trainables.attacks import EVAL_BATCH, ContinuousPgd, accuracy, fgsm, fraction, pgd, robust_accuracy
from trainables.config import EvalConfig, TrialConfig, require_craftable
from trainables.cuda_graphs import Graphs
from trainables.data import Dataset, Split, to_float
from trainables.errors import InputError
from trainables.files import write_whole
from trainables.norms import uses_batch_statistics
from trainables.resnet import resnet
from trainables.sgd import SGD

logger = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """Training met a loss or a weight that is not finite."""


class Trial:
    """A training run that can stop after any epoch and go on from its `state_dict`.

    Same configuration, device and versions give the same result: initialisation, batches and
    attacks each draw from generators seeded by `config.seed`. On CUDA, cuDNN may choose other
    kernels from run to run; nothing else varies.

    Args:
        config: What to train.
        dataset: On the device.
        evaluation: How to judge it.
        device: Where all of it runs.
        shares_device: Whether others use a GPU at the same time, so that cuDNN must not time its kernels.

    Raises:
        InputError: If a batch is larger than the training set, or images are to be attacked with initial weights whose
            logits do not depend on the image.
    """

    def __init__(
        self,
        config: TrialConfig,
        dataset: Dataset,
        evaluation: EvalConfig,
        device: torch.device,
        shares_device: bool = False,
    ) -> None:
        require_fitting(config, dataset, evaluation)
        self.config, self.dataset, self.evaluation, self.device = config, dataset, evaluation, device
        self.model = build_model(config, dataset, torch.Generator().manual_seed(config.seed))
        self.model = self.model.to(device, memory_format=torch.channels_last)
        self.optimizer = SGD(
            self.model, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
        )
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.graphs = Graphs(device, [self.generator], time_kernels=not shares_device)
        self.train_seconds = 0.0
        self.crafting_seconds = 0.0  # of `training_images`; training's first epoch counts them
        self.calibrated_seconds: float | None = 0.0  # None once an epoch ran without `calibrate`
        self.seconds_per_step: dict[int, float] = {}  # with the device alone, by batch size; see `calibrate`
        self.curve: list[dict[str, float]] = []  # one row per finished epoch
        self.attacked: dict[bool, Tensor] = {}  # images against the initial weights, of the last and other evaluations

    @property
    def done(self) -> bool:
        return len(self.curve) == self.config.epochs

    @property
    def accuracies(self) -> list[float]:
        """What schedules that follow accuracy see: validation accuracy on the kind of images trained on."""
        column = "clean_accuracy" if self.config.training == "natural" else "adversarial_accuracy"
        return [row[column] for row in self.curve]

    @property
    def batch_sizes(self) -> list[int]:
        return batch_schedules.batch_sizes(self.config.batch_size_schedule, self.config.epochs, self.accuracies)

    @cached_property
    def trainer(self) -> engine.Trainer:
        step = adversarial.step(self.config, self.generator)
        return engine.Trainer(
            self.model,
            self.optimizer,
            step,
            *self.training_images,
            self.generator,
            self.graphs,
            self.config.precision,
        )

    def warm_up(self) -> None:
        """Prepares each batch size, so that first-call costs and captures stay out of `train_seconds`."""
        for size in sorted(set(self.batch_sizes), reverse=True):  # the largest shapes the memory of all graphs
            self.trainer.prepare(size)

    @cached_property
    def timed(self) -> list[int]:
        """The batch sizes from which this schedule's seconds follow, and `timing.BEFORE` where images are crafted.

        The same for all trials of a schedule, so that equal trainings have equal seconds. Growth may reach its last.
        """
        schedule = self.config.batch_size_schedule
        sizes = [*batch_schedules.batch_sizes(schedule, self.config.epochs, []), schedule.largest]
        before = [timing.BEFORE] if self.config.training == "static" else []
        return before + timing.grid(sizes, len(self.dataset.train))

    def untimed(self, known: Collection[int]) -> list[int]:
        """What is still to be timed before this schedule's seconds follow."""
        return [size for size in self.timed if size not in known]

    def calibrate(self, known: Mapping[int, float]) -> dict[int, float]:
        """Time a step at each batch size of `untimed`; the device must be free of others.

        Args:
            known: Seconds per step by batch size, and of `timing.BEFORE`, of this configuration's network, norm and
                training on devices of this kind.

        Returns:
            Those that were measured now.
        """
        runs = {size: partial(self.trainer.seconds, size) for size in self.untimed(known)}
        if timing.BEFORE in runs:
            runs[timing.BEFORE] = self._crafting()
        measured = timing.step_seconds(runs)
        if timing.BEFORE in runs:
            measured[timing.BEFORE] *= max(1.0, len(self.dataset.train) / timing.CRAFTED_AT_ONCE)  # batches
        table = {**known, **measured}
        self.seconds_per_step = {size: table[size] for size in self.timed}
        return measured

    def _crafting(self) -> Callable[[int], float]:
        """Crafts so many batches of `training_images` and returns the seconds they took."""
        images, labels = first_examples(self.dataset.train, timing.CRAFTED_AT_ONCE)
        attacked = self._untrained()

        def craft(n_batches: int) -> float:
            start = self._now()
            with engine.convolving_in(self.config.precision):
                for _ in range(n_batches):
                    self._craft(attacked, images, labels)
            return self._now() - start

        return craft

    @property
    def seconds_ahead(self) -> float | None:
        """Calibrated seconds of the epochs that are left; None before `calibrate`."""
        return self._calibrated(self.batch_sizes[len(self.curve) :])

    def _calibrated(self, batch_sizes: Sequence[int]) -> float | None:
        """Of the next epochs, one at each of the sizes, with what comes before the first."""
        if not self.seconds_per_step:
            return None
        table, n_examples = self.seconds_per_step, len(self.dataset.train)
        before = 0.0 if self.curve else table.get(timing.BEFORE, 0.0)
        return before + math.fsum(timing.epoch_seconds(table, size, n_examples) for size in batch_sizes)

    def train_epoch(self) -> dict[str, float]:
        """Train one epoch, evaluate, and return the new row of the curve.

        Raises:
            Diverged: If the loss or a weight is not finite at the epoch's end.
        """
        epoch, config, sizes = len(self.curve), self.config, self.batch_sizes
        size = sizes[epoch]
        peak_lr = config.lr_batch_ratio * (size if config.lr_follows_batch else sizes[0])
        schedule = lr_schedules.schedule(config.lr_schedule)
        n_steps = batch_schedules.steps_per_epoch(len(self.dataset.train), size)
        lrs = [schedule((epoch + i / n_steps) / config.epochs, self.accuracies, peak_lr) for i in range(n_steps)]

        self.trainer.prepare(size)
        start = self._now()
        loss = self.trainer.train_epoch(size, lrs).item()  # the epoch's one synchronisation
        self.train_seconds += time.perf_counter() - start + (0.0 if self.curve else self.crafting_seconds)
        calibrated = self._calibrated([size])
        known = calibrated is not None and self.calibrated_seconds is not None
        self.calibrated_seconds = self.calibrated_seconds + calibrated if known else None

        place = f"in epoch {epoch + 1} of {config.epochs}"
        if not math.isfinite(loss):
            raise Diverged(f"loss {loss} {place}")
        if not self._weights_finite():
            raise Diverged(f"a weight or a running statistic that is not finite {place}")
        self.curve.append(
            {
                "epoch": epoch + 1,
                "train_seconds": self.train_seconds,
                "calibrated_seconds": self.calibrated_seconds,
                "train_loss": loss,
                "batch_size": size,
                "lr": lrs[-1],
                **self._evaluate(last=epoch + 1 == config.epochs),
            }
        )
        if "fgsm_accuracy" in self.curve[-1]:
            self._warn_of_overfitting()
        return self.curve[-1]

    @cached_property
    def training_images(self) -> tuple[Split, str]:
        """What an epoch passes over and how it is augmented.

        `static` training crafts it once, which counts as training, and leaves it so; a resumed one crafts it again.
        """
        train, config = self.dataset.train, self.config
        if config.training != "static":
            return train, self.dataset.augmentation
        images, labels = first_examples(train, len(train))
        start = self._now()
        with engine.convolving_in(config.precision):
            crafted = self._craft(self._untrained(), images, labels)
        self.crafting_seconds = self._now() - start
        return Split(crafted, labels), "none"

    def _craft(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        config = self.config
        recipe = {"norm": config.attack_norm, "eps": config.eps, "steps": config.pgd_steps}
        return self._crafted(model, x, y, recipe | {"step_size": config.step_size})

    def _untrained(self) -> nn.Module:
        """The network with its initial weights."""
        return build_model(self.config, self.dataset, torch.Generator().manual_seed(self.config.seed)).to(self.device)

    def _crafted(self, model: nn.Module, x: Tensor, y: Tensor, recipe: dict[str, object]) -> Tensor:
        """Images that attack the model; the same at each call."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        return adversarial.craft(model, x, y, **recipe, generator=generator)

    def _evaluate(self, last: bool) -> dict[str, float]:
        """Clean and adversarial accuracy; on validation, but for the last one of a trial that is judged on test.

        FGSM training adds the accuracy under FGSM, and the last evaluation what the probes find. All in strict fp32.
        """
        with engine.convolving_in("fp32"):
            return self._measure(last)

    def _measure(self, last: bool) -> dict[str, float]:
        model, evaluation = self.model, self.evaluation
        n_examples = evaluation.examples if last else evaluation.curve_examples
        use_test = last and evaluation.split == "test"
        x, y = first_examples(self.dataset.test if use_test else self.dataset.validation, n_examples)
        # First, since it prepares cuDNN's kernels for the shapes that the others meet too.
        adversarial_accuracy = self._adversarial_accuracy(x, y, last)
        row = {
            "clean_accuracy": accuracy(model, x, y, EVAL_BATCH),
            "adversarial_accuracy": adversarial_accuracy,
            "n_examples": len(y),
        }
        if self.config.training == "fgsm" or "strong" in evaluation.probes:
            one_step = partial(fgsm, eps=evaluation.eps, norm=evaluation.attack_norm)
            row["fgsm_accuracy"] = robust_accuracy(model, x, y, one_step, EVAL_BATCH)
        if last and evaluation.probes:
            train = first_examples(self.dataset.train, probes.N_HESSIAN)
            subject = probes.Subject(
                model,
                train,
                (x, y),
                evaluation.eps,
                self.config.seed,
                evaluation.attack_steps,
                evaluation.strong_examples,
                evaluation.attack_norm,
            )
            row |= probes.measure(evaluation.probes, subject)
        return row

    def _adversarial_accuracy(self, x: Tensor, y: Tensor, last: bool) -> float:
        evaluation = self.evaluation
        if evaluation.attacked_weights == "initial":
            if last not in self.attacked:
                recipe = {"norm": evaluation.attack_norm, "eps": evaluation.eps, "steps": evaluation.attack_steps}
                recipe["step_size"] = self.config.step_size
                self.attacked[last] = self._crafted(self._untrained(), x, y, recipe)
            return accuracy(self.model, self.attacked[last], y, EVAL_BATCH)
        if self.graphs.captures and not uses_batch_statistics(self.model):
            generator = torch.Generator(self.device).manual_seed(self.config.seed)
            return fraction(self.continuous_pgd.robust_mask(x, y, generator))
        attack = evaluation_attack(self.model, evaluation, self.config.seed)
        return robust_accuracy(self.model, x, y, attack, EVAL_BATCH)

    @cached_property
    def continuous_pgd(self) -> ContinuousPgd:
        """On CUDA what `evaluation_attack` is elsewhere: the same starts, steps and verdicts."""
        evaluation, dataset = self.evaluation, self.dataset
        there_are = max(len(dataset.validation), len(dataset.test))
        return ContinuousPgd(
            self.model,
            dataset.train.images.shape[1:],
            min(max(evaluation.examples, evaluation.curve_examples), there_are),
            self.graphs,
            eps=evaluation.eps,
            steps=evaluation.attack_steps,
            norm=evaluation.attack_norm,
            batch_size=EVAL_BATCH,
        )

    def _warn_of_overfitting(self) -> None:
        """Puts a `warning` into the newest row, and the log, once training has overfitted catastrophically to FGSM."""
        under_fgsm, under_pgd = (
            [row[column] for row in self.curve] for column in ("fgsm_accuracy", "adversarial_accuracy")
        )
        epoch = probes.catastrophic_overfitting(under_fgsm, under_pgd)
        if epoch:
            warning = f"catastrophic overfitting in epoch {epoch}: PGD accuracy {under_pgd[epoch - 1]:.3f}"
            self.curve[-1]["warning"] = f"{warning}, FGSM accuracy {under_fgsm[epoch - 1]:.3f}"
            logger.warning(self.curve[-1]["warning"])

    def _weights_finite(self) -> bool:
        with torch.no_grad():
            learnt = chain(self.model.parameters(), self.model.buffers())
            return bool(torch.stack([tensor.isfinite().all() for tensor in learnt]).all())

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def state_dict(self) -> dict[str, object]:
        """All that a later process needs to go on; loads with `weights_only=True`."""
        return {
            "config": self.config.model_dump_json(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "carried": self.trainer.carried,
            "generator": self.generator.get_state(),
            "train_seconds": self.train_seconds,
            "calibrated_seconds": self.calibrated_seconds,
            "curve": self.curve,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Raises:
        ValueError: If the state belongs to another configuration.
        """
        if TrialConfig.model_validate_json(state["config"]) != self.config:  # older ones may lack a newer field
            raise ValueError(f"checkpoint of another trial: {state['config']}; accepted: {self.config!r}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["carried"]:
            for mine, saved in zip(self.trainer.carried, state["carried"], strict=True):
                mine.copy_(saved)
        self.generator.set_state(state["generator"].cpu())
        self.train_seconds = state["train_seconds"]
        self.calibrated_seconds = state["calibrated_seconds"]
        self.curve = list(state["curve"])

    def save_weights(self, path: Path) -> None:
        write_whole(path, self.weights())

    def weights(self) -> bytes:
        """Weights as safetensors, with what `load_model` needs in the file's metadata."""
        metadata = {
            "config": self.config.model_dump_json(),
            "num_classes": str(self.dataset.num_classes),
            "in_channels": str(self.dataset.in_channels),
            "class_names": json.dumps(self.dataset.class_names),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        return safetensors_bytes(tensors, metadata)


def require_fitting(config: TrialConfig, dataset: Dataset, evaluation: EvalConfig) -> None:
    require_craftable(config)
    largest, there_are = config.batch_size_schedule.largest, len(dataset.train)
    if largest > there_are:
        raise InputError(
            f"batch_size_schedule: {largest} images in a batch given; accepted: at most the training set ({there_are})"
        )
    if evaluation.attacked_weights == "initial" and config.norm == "fixup":
        raise InputError(
            "attacked_weights: 'initial' given with norm 'fixup', whose untrained logits do not depend on the image; "
            "accepted: 'current', or another norm"
        )


def build_model(config: TrialConfig, dataset: Dataset, generator: torch.Generator) -> nn.Module:
    return resnet(
        config.depth,
        dataset.num_classes,
        dataset.in_channels,
        config.norm,
        eval_statistics=config.eval_statistics,
        mean=dataset.mean,
        std=dataset.std,
        generator=generator,
    )


def load_model(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """A trained network from its weights file, ready to classify.

    Args:
        path: A `.safetensors` file that `Trial.save_weights` wrote.
        device: Where the network goes.

    Returns:
        The network in eval mode: images (N, C, H, W) in [0, 1] to logits (N, classes).
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    config = TrialConfig.model_validate_json(metadata["config"])
    model = resnet(
        config.depth,
        int(metadata["num_classes"]),
        int(metadata["in_channels"]),
        config.norm,
        eval_statistics=config.eval_statistics,
    )
    model.load_state_dict(tensors)
    return model.eval().to(device, memory_format=torch.channels_last)


def first_examples(split: Split, n: int) -> tuple[Tensor, Tensor]:
    """The first `n` images (all where there are fewer), in [0, 1], and labels; splits are shuffled already."""
    images = to_float(split.images[:n]).contiguous(memory_format=torch.channels_last)
    return images, split.labels[:n]


def evaluation_attack(model: nn.Module, evaluation: EvalConfig, seed: int) -> adversarial.Attack:
    """PGD with a random start, the same one at each call; fooled examples are dropped where that is exact."""
    device = next(model.parameters()).device
    return partial(
        pgd,
        eps=evaluation.eps,
        steps=evaluation.attack_steps,
        norm=evaluation.attack_norm,
        generator=torch.Generator(device).manual_seed(seed),
        drop_fooled=not uses_batch_statistics(model),
    )
