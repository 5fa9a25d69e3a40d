"""The training engine beside plain torch on one GPU: steps, packing, evaluation, precision.

Command: python -m benchmarks.engine --out FILE [--data FOLDER]; `--smoke` runs a shrunken form on the CPU.
Measured: nothing yet on a GPU. Hardware and versions: those of the run; both are in its JSON.
Needs torch, torchvision and numpy; torchattacks is used where it is installed. At most ten minutes: each section has
its own seconds and process, and is written to FILE as it goes, so one that fails or runs late costs only its own rest.
One that runs late is told to end, so that it ends what it has started, and killed if it doesn't.
Everywhere but in `heuristic`, `packing` and `streams` cuDNN times its kernels, on all sides.

Sections and sample sizes:
  ceilings    copy bandwidth, matrix products, seconds per node of a graph: what the floor is computed from
  steps       ms per step and images/s: batch 8, 32, 128, 512 x BatchNorm, Fixup x natural, PGD-7 training of
              (a) a public-style script (benchmarks/plain_loop.py) in torch's default float32, whose convolutions are
              TF32 as the engine's are, (b) the same with channels_last and autocast,
              (c) this engine in TF32, and (c) in bf16, without graphs, and with torch's own kernels for BatchNorm
              instead of cuDNN's; the median of three timings each;
              capture seconds, once cuDNN has chosen the kernels of all sizes of a pass; the floor of (c)
  kernels     how many kernels an eager step launches at each of these sizes, which the floor needs too, and which of
              them take most of its time
  timed, heuristic  seconds of preparing in a fresh process, cuDNN's choice and the captures together, and ms per step,
              with and without cuDNN timing its kernels
  packing     trials per hour of 1, 2, 4, 8 processes on the GPU, with and without CUDA MPS
  streams     trials per hour of as many trials on streams of one process
  evaluation  PGD-20 of 5,000 images by continuous batching, which judges each iterate, beside torchattacks' PGD, which
              judges the last; robust accuracy of both
  parity      five seeds of FGSM training in fp32, TF32 and bf16: differences of clean and PGD-10 accuracy and their
              95 % intervals. Without --data on made-up images, which says little.

The floor of a step, in seconds: max(FLOPs / FLOP/s, bytes / (bytes/s), kernels x seconds per graph node), with the
FLOPs that torch counts, the bytes of every convolution reading its operands and writing its result once and nothing
else touching memory, the kernels that one eager step launches, and the ceilings measured in the same run. Where one of
the three is missing, a profiler that may not see the kernels say, the floor names what it is without.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import plain_loop
from benchmarks.engine_table import FLOOR, Row, lines, parity_differences, small_against_large, table
from trainables import adversarial, data, engine
from trainables.attacks import ContinuousPgd, accuracy, classified, evaluating
from trainables.cuda_graphs import Graphs, fastest_convolutions
from trainables.data import Split
from trainables.errors import InputError
from trainables.files import write_whole
from trainables.mps import mps
from trainables.norms import BatchNorm2d
from trainables.resnet import resnet
from trainables.sgd import SGD

EPS, STEP_SIZE = 8 / 255, 2 / 255
NATIVE = "batchnorm, torch's own"  # a norm of this benchmark: see `natively_normalised`
LISTED = 20  # kernels by name

Say = Callable[[Row], None]  # keeps a row of a section


@dataclass(frozen=True)
class Settings:
    """The size of a run; `SMOKE` is the shrunken one."""

    device: str = "cuda"
    data: str | None = None
    depth: int = 56
    image_size: int = 32
    n_train: int = 40_000
    n_held_out: int = 5_000
    batch_sizes: tuple[int, ...] = (8, 128, 32, 512)  # the most telling first
    norms: tuple[str, ...] = ("batchnorm", "fixup")
    trainings: tuple[str, ...] = ("natural", "pgd")
    pgd_steps: int = 7
    attack_steps: int = 20
    evaluation_batch: int = 512
    n_workers: int = 8
    timing_seconds: float = 0.25  # of each of three timings
    packed: tuple[int, ...] = (1, 2, 4, 8)
    packing_seconds: float = 1.0
    packing_batches: tuple[int, ...] = (8, 128)
    packing_cells: tuple[tuple[int, str], ...] = ((8, "batchnorm"), (8, "fixup"), (8, NATIVE), (128, "batchnorm"))
    trial_epochs: int = 10  # of the trial that "trials per hour" counts
    seeds: int = 5
    parity_epochs: int = 3
    matrix: int = 8192
    copied: int = 2**30  # floats

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)


SMOKE = Settings(
    device="cpu",
    depth=8,
    image_size=8,
    n_train=66,  # whose last batch is smaller
    n_held_out=40,
    batch_sizes=(4,),
    pgd_steps=1,
    attack_steps=2,
    evaluation_batch=16,
    n_workers=0,
    timing_seconds=0.0,
    packed=(1, 2),
    packing_seconds=0.2,
    packing_batches=(4,),
    packing_cells=((4, "batchnorm"), (4, "fixup")),
    trial_epochs=1,
    seeds=2,
    parity_epochs=1,
    matrix=64,
    copied=2**10,
)


# Images and models


def images(settings: Settings) -> tuple[Split, Split]:
    """Images to train on and others to judge by: those of --data, some of train/ held out, or made-up ones."""
    generator = torch.Generator().manual_seed(0)
    n = settings.n_train + settings.n_held_out
    if settings.data is not None:
        source = data.imagefolder(settings.data)
        chosen = torch.randperm(len(source.labels), generator=generator)
        pixels, labels = torch.from_numpy(source.images)[chosen], torch.from_numpy(source.labels)[chosen]
        n = min(n, len(labels))
    else:
        labels = torch.randint(10, (n,), generator=generator)
        shape = (3, settings.image_size, settings.image_size)
        classes = torch.rand(10, *shape, generator=generator)
        noise = torch.rand(n, *shape, generator=generator)
        pixels = ((0.25 * classes[labels] + 0.75 * noise) * 255).byte()
    cut = n - settings.n_held_out
    parts = ((pixels[:cut], labels[:cut]), (pixels[cut:n], labels[cut:n]))
    train, held_out = (Split(*(part.to(settings.torch_device) for part in pair)) for pair in parts)
    return train, held_out


def network(settings: Settings, norm: str, seed: int = 0) -> nn.Module:
    kind = "batchnorm" if norm == NATIVE else norm
    model = resnet(settings.depth, 10, 3, kind, generator=torch.Generator().manual_seed(seed))
    if norm == NATIVE:
        for module in model.modules():
            if isinstance(module, BatchNorm2d):
                module.forward = partial(natively_normalised, module)
    return model.to(settings.torch_device)


def natively_normalised(norm: BatchNorm2d, x: Tensor) -> Tensor:
    """Training's batch normalisation by torch's own kernels, where `F.batch_norm` takes cuDNN's in float32.

    cuDNN's need all their blocks on the device at once, which may keep trials that share it from running together.
    """
    learnt, running = (norm.weight, norm.bias), (norm.running_mean, norm.running_var)
    return torch.native_batch_norm(x, *learnt, *running, True, norm.momentum, norm.eps)[0]


def recipe(settings: Settings, training: str, largest: int) -> SimpleNamespace:
    """What `adversarial.step` reads of a TrialConfig, which would need pydantic."""
    schedule = SimpleNamespace(largest=largest)
    return SimpleNamespace(
        training=training,
        attack_norm="linf",
        eps=EPS,
        pgd_steps=settings.pgd_steps,
        step_size=None,
        batch_size_schedule=schedule,
    )


def make_trainer(
    settings: Settings,
    split: Split,
    norm: str,
    training: str,
    batch_size: int,
    precision: str = "tf32",
    capture: bool = True,
    seed: int = 0,
    time_kernels: bool = True,
) -> engine.Trainer:
    device = settings.torch_device
    model = network(settings, norm, seed).to(memory_format=torch.channels_last)
    optimizer = SGD(model, momentum=0.9, nesterov=False, weight_decay=5e-4)
    generator = torch.Generator(device).manual_seed(seed)
    step = adversarial.step(recipe(settings, training, batch_size), generator)
    graphs = Graphs(device, [generator], capture, time_kernels)
    return engine.Trainer(model, optimizer, step, split, "crop_flip", generator, graphs, precision)


# Timing


def now(settings: Settings) -> float:
    """After all that was asked of the device is done."""
    if settings.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_per_call(settings: Settings, run: Callable[[int], float]) -> float:
    """The median of three timings of about `timing_seconds`; `run` makes n calls and returns their seconds."""
    run(1)
    once = run(2) / 2
    n = max(2, math.ceil(settings.timing_seconds / once))
    return statistics.median(run(n) / n for _ in range(3))


def calls(settings: Settings, call: Callable[[], object]) -> Callable[[int], float]:
    def run(n: int) -> float:
        start = now(settings)
        for _ in range(n):
            call()
        return now(settings) - start

    return run


# Sections


def ceilings(settings: Settings, say: Say) -> None:
    device, n = settings.torch_device, settings.matrix
    pair = torch.empty(2, settings.copied, device=device)
    seconds = seconds_per_call(settings, calls(settings, lambda: pair[0].copy_(pair[1])))
    say({"what": "copy", "bytes_per_second": pair.numel() * pair.element_size() / seconds})
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    for name, dtype, precision in (
        ("fp32", torch.float32, "ieee"),
        ("tf32", torch.float32, "tf32"),
        ("bf16", torch.bfloat16, "ieee"),
    ):
        products.fp32_precision = precision
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        seconds = seconds_per_call(settings, calls(settings, lambda a=a, b=b: a @ b))
        say({"what": "matrix product", "precision": name, "flop_per_second": 2 * n**3 / seconds})
    products.fp32_precision = before
    x, n_nodes = torch.zeros(1, device=device), 1000

    def nodes() -> None:
        for _ in range(n_nodes):
            x.add_(1)

    for name, capture in (("graph node", True), ("eager launch", False)):
        graphs = Graphs(device, capture=capture)
        graphs.prepare("nodes", nodes, [x])
        run = calls(settings, lambda graphs=graphs: graphs.run("nodes", nodes))
        say({"what": name, "seconds": seconds_per_call(settings, run) / n_nodes, "captured": graphs.captures})


def steps(settings: Settings, say: Say) -> None:
    train, _ = images(settings)
    for size in settings.batch_sizes:
        cells = [(norm, training) for norm in settings.norms for training in settings.trainings]
        # The plain loops of all cells come first: their loaders' threads use the device and would disturb captures.
        for norm, training in cells:
            for variant, fast in PLAIN.items():
                # A loader of its own for each: one that raised has no batches left.
                loader = plain_loop.batches(train, size, settings.n_workers, settings.torch_device)
                cell = {"batch_size": size, "norm": norm, "training": training, "variant": variant}
                with said_if_it_fails(say, cell), contextlib.closing(loader) as batches:
                    seconds = plain_seconds(settings, batches, norm, training, fast)
                    say(cell | speed(size, seconds))
        for norm, training in cells:
            for variant, how in variants(norm, first=norm == cells[0][0]).items():
                cell = {"batch_size": size, "norm": norm, "training": training, "variant": variant}
                with said_if_it_fails(say, cell):
                    seconds, more = engine_seconds(settings, train, size, norm, training, how, variant == "engine")
                    say(cell | speed(size, seconds) | more)


PLAIN = {"plain": False, "plain, channels_last and autocast": True}


def variants(norm: str, first: bool) -> dict[str, dict[str, object]]:
    """Of the engine, and what `make_trainer` is told of each; without graphs for the first norm alone."""
    found: dict[str, dict[str, object]] = {"engine": {}, "engine bf16": {"precision": "bf16"}}
    if first:
        found["engine without graphs"] = {"capture": False}
    if norm == "batchnorm":
        found["engine, torch's own batch norm"] = {"norm": NATIVE}
    return found


@contextlib.contextmanager
def said_if_it_fails(say: Say, cell: Row) -> Iterator[None]:
    """One cell that fails, out of memory or because a loader's worker died, costs no other."""
    try:
        yield
    except Exception as error:
        say(cell | {"failed": f"{type(error).__name__}: {error}"})


def speed(size: int, seconds: float) -> Row:
    return {"ms_per_step": 1000 * seconds, "images_per_second": size / seconds}


def plain_seconds(settings: Settings, batches: Iterator, norm: str, training: str, fast: bool) -> float:
    attack = None
    if training == "pgd":
        attack = plain_loop.pgd_by_backward(EPS, 2.5 * EPS / settings.pgd_steps, settings.pgd_steps)
    loop = plain_loop.Loop(network(settings, norm), fast, attack)
    return seconds_per_call(settings, calls(settings, lambda: loop.step(*next(batches))))


def engine_seconds(
    settings: Settings, train: Split, size: int, norm: str, training: str, how: dict, count: bool
) -> tuple[float, Row]:
    """Seconds per step, and what preparing took; with `count` also what the floor is computed from."""
    trainer = make_trainer(settings, train, **({"norm": norm, "training": training, "batch_size": size} | how))
    row = work(trainer, size) if count else {}
    meet(trainer, size)
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = now(settings)
    trainer.prepare(size)
    row |= {"prepare_seconds": now(settings) - start, "n_captures": len(trainer.graphs.graphs)}
    seconds = seconds_per_call(settings, lambda n: trainer.seconds(size, n))
    return seconds, row | peak_memory(settings)


def meet(trainer: engine.Trainer, batch_size: int) -> None:
    """One eager step of each size that a pass has, which changes nothing and lets cuDNN choose its kernels."""
    with trainer.graphs.unchanged(trainer._state()), trainer._training():
        for size in set(trainer._sizes(batch_size)):
            trainer._rewind()
            trainer._step(size)


def peak_memory(settings: Settings) -> Row:
    if settings.device != "cuda":
        return {}
    return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}


class Operands(TorchDispatchMode):
    """Counts FLOPs as torch's FlopCounterMode does, operations that are no views, and the bytes of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204 (torch's own signature)
        out = func(*args, **(kwargs or {}))
        self.n += not func.is_view
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        if "convolution" in str(func):
            tensors = [leaf for leaf in tree_leaves((args, out)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def work(trainer: engine.Trainer, batch_size: int) -> Row:
    """FLOPs and least bytes of one eager step, which changes nothing, and how many operations it dispatches."""
    with trainer.graphs.unchanged(trainer._state()), trainer._training(), Operands() as operands:
        trainer._rewind()
        trainer._step(batch_size)
    return {"flops": operands.flops, "least_bytes": operands.bytes, "operations": operands.n}


def kernels(settings: Settings, say: Say) -> None:
    """In a process of its own, since a profiler may disturb graphs that are captured after it."""
    train, _ = images(settings)
    for size in settings.batch_sizes:
        for norm in settings.norms:
            for training in settings.trainings:
                cell = {"batch_size": size, "norm": norm, "training": training}
                with said_if_it_fails(say, cell):
                    trainer = make_trainer(settings, train, norm, training, size, capture=False)
                    say(cell | launched(settings, trainer, size))


def launched(settings: Settings, trainer: engine.Trainer, size: int) -> Row:
    """How many kernels one eager step launches, after one in which cuDNN chose its own.

    Raises:
        RuntimeError: If the profiler saw none, as where it may not watch the device.
    """
    operations = work(trainer, size)["operations"]
    if settings.device != "cuda":
        return {"kernels": operations, "counted_by": "operations dispatched: no CUDA device"}
    trainer._rewind()
    with trainer._training():
        microseconds = profiled_kernels(partial(trainer._step, size))
    n = sum(len(each) for each in microseconds.values())
    if n == 0:
        raise RuntimeError("the profiler saw no kernel")
    longest = sorted(microseconds, key=lambda name: -sum(microseconds[name]))[:LISTED]
    most_time = {name[:100]: [len(microseconds[name]), statistics.mean(microseconds[name])] for name in longest}
    return {"kernels": n, "counted_by": "profiler", "most time: how often, mean microseconds": most_time}


def profiled_kernels(call: Callable[[], None]) -> dict[str, list[float]]:
    """Microseconds of each launch of each kernel, by its name."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            found.setdefault(event.name, []).append(event.time_range.elapsed_us())
    return found


def tuning(time_kernels: bool, settings: Settings, say: Say) -> None:
    """Either way in a process of its own: cuDNN keeps the kernel that a shape got first."""
    train, _ = images(settings)
    for size in settings.packing_batches:
        trainer = make_trainer(settings, train, "batchnorm", "natural", size, time_kernels=time_kernels)
        start = now(settings)
        trainer.prepare(size)
        row = {"batch_size": size, "prepare_seconds": now(settings) - start, "n_captures": len(trainer.graphs.graphs)}
        seconds = seconds_per_call(settings, lambda n, trainer=trainer, size=size: trainer.seconds(size, n))
        say(row | {"ms_per_step": 1000 * seconds})


def packing(settings: Settings, say: Say) -> None:
    for how in ("processes with MPS", "processes"):
        with mps() if how.endswith("MPS") else no_mps() as refusal:
            if refusal:
                say({"how": how, "not_measured": refusal})
                continue
            try:
                for row in packed_processes(settings):
                    say({"how": how, **row})
            except RuntimeError as error:
                say({"how": how, "failed": str(error)})


@contextlib.contextmanager
def no_mps() -> Iterator[str]:
    """Processes that are started inside find no MPS daemon, even where one runs already."""
    with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, CUDA_MPS_PIPE_DIRECTORY=empty):
        yield ""


def trials_per_hour(settings: Settings, size: int, steps_per_second: float) -> float:
    """Of trials of `trial_epochs` epochs of training, without what comes before, between and after."""
    return 3600 * steps_per_second / (settings.trial_epochs * math.ceil(settings.n_train / size))


def packed_processes(settings: Settings) -> Iterator[Row]:
    """All processes prepare first; then as many as are asked for run at a time, the others idle."""
    context = torch.multiprocessing.get_context("spawn")
    most = max(settings.packed)
    pipes = [context.Pipe() for _ in range(most)]
    barriers = {k: context.Barrier(k) for k in settings.packed}
    workers = [context.Process(target=pack, args=(settings, theirs, barriers), daemon=True) for _, theirs in pipes]
    for worker, (_, theirs) in zip(workers, pipes, strict=True):
        worker.start()
        theirs.close()  # so that a worker's end is the pipe's end
    try:
        for ours, _ in pipes:
            receive(ours, "ready")
        for size, norm in settings.packing_cells:
            for k in settings.packed:
                for ours, _ in pipes[:k]:
                    ours.send((size, norm, k))
                rates = [receive(ours) for ours, _ in pipes[:k]]
                yield {"norm": norm} | packed_row(settings, size, k, sum(rates))
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def packed_row(settings: Settings, size: int, k: int, steps_per_second: float) -> Row:
    per_hour = trials_per_hour(settings, size, steps_per_second)
    return {"batch_size": size, "trials": k, "steps_per_second": steps_per_second, "trials_per_hour": per_hour}


def receive(pipe, expected: object = None) -> object:  # noqa: ANN001 (multiprocessing's type has no public name)
    """Raises:
    RuntimeError: If the other side ended instead.
    """
    try:
        if pipe.poll(300):
            return pipe.recv()
    except EOFError:
        pass
    raise RuntimeError(f"a packed process ended or hung before it said {expected or 'its rate'}")


def pack(settings: Settings, pipe, barriers: dict) -> None:  # noqa: ANN001
    """One packed process: steps for some seconds whenever it is asked to, and says how many it made per second."""
    torch.set_num_threads(1)
    train, _ = images(settings)
    # As in a study whose trials share a GPU, none times kernels beside the others.
    trainers = {
        (size, norm): make_trainer(settings, train, norm, "natural", size, time_kernels=False)
        for size, norm in settings.packing_cells
    }
    for (size, _), trainer in trainers.items():
        trainer.prepare(size)
    pipe.send("ready")
    while True:
        size, norm, k = pipe.recv()
        barriers[k].wait()
        pipe.send(steps_per_second(settings, [trainers[size, norm]], size))


def steps_per_second(settings: Settings, trainers: list[engine.Trainer], size: int) -> float:
    """Of all together, in turn, each on a stream of its own where there is more than one; they learn nothing."""
    cuda = settings.device == "cuda" and len(trainers) > 1
    streams = [torch.cuda.stream(torch.cuda.Stream()) if cuda else contextlib.nullcontext() for _ in trainers]
    in_a_pass = max(1, len(trainers[0].split) // size)
    n, start = 0, now(settings)
    while time.perf_counter() - start < settings.packing_seconds:
        for trainer, stream in zip(trainers, streams, strict=True):
            with stream:
                if n % in_a_pass == 0:
                    trainer._rewind()
                trainer._run(size)
        n += 1
        if n % 100 == 0:
            now(settings)  # so that the host doesn't run ahead of the clock
    return len(trainers) * n / (now(settings) - start)


def streams(settings: Settings, say: Say) -> None:
    """Trials of one process, each on its own stream, fed in turn by one thread."""
    train, _ = images(settings)
    for size in settings.packing_batches:
        trainers = [
            make_trainer(settings, train, "batchnorm", "natural", size, seed=seed, time_kernels=False)
            for seed in range(max(settings.packed))
        ]
        for trainer in trainers:
            trainer.prepare(size)
        for k in settings.packed:
            say(packed_row(settings, size, k, steps_per_second(settings, trainers[:k], size)))
        del trainers, trainer  # all graphs of a stream go before the stream is used again


def trained(settings: Settings, train: Split, precision: str, seed: int) -> tuple[nn.Module, float]:
    """FGSM training in batches of 128, its rate falling in a line from 0.1 to 0; the seconds of training alone."""
    size = min(128, len(train))
    trainer = make_trainer(settings, train, "batchnorm", "fgsm", size, precision, seed=seed)
    in_a_pass = math.ceil(len(train) / size)
    n = settings.parity_epochs * in_a_pass
    trainer.prepare(size)
    start = now(settings)
    for epoch in range(settings.parity_epochs):
        trainer.train_epoch(size, [0.1 * (1 - (epoch * in_a_pass + i) / n) for i in range(in_a_pass)])
    return trainer.model, now(settings) - start


def judged(settings: Settings, model: nn.Module, held_out: Split, n_steps: int) -> ContinuousPgd:
    shape, graphs = tuple(held_out.images.shape[1:]), Graphs(settings.torch_device)
    rule = {"eps": EPS, "steps": n_steps, "step_size": STEP_SIZE, "batch_size": settings.evaluation_batch}
    return ContinuousPgd(model, shape, len(held_out), graphs, **rule)


def evaluation(settings: Settings, say: Say) -> None:
    train, held_out = images(settings)
    device, size = settings.torch_device, settings.evaluation_batch
    model = trained(settings, train, "tf32", 0)[0].eval()
    x = data.to_float(held_out.images).contiguous(memory_format=torch.channels_last)
    y = held_out.labels
    torch.manual_seed(0)
    try:
        import torchattacks

        theirs, whose = torchattacks.PGD(model, eps=EPS, alpha=STEP_SIZE, steps=settings.attack_steps), "torchattacks"
    except ImportError:
        theirs = plain_loop.pgd_as_torchattacks(model, EPS, STEP_SIZE, settings.attack_steps)
        whose = "torchattacks' loop, written out: it is not installed"

    def by_torchattacks(x: Tensor, y: Tensor) -> Tensor:
        parts = zip(x.split(size), y.split(size), strict=True)
        pieces = [classified(model, images, y) & classified(model, theirs(images, y), y) for images, y in parts]
        return torch.cat(pieces)

    def compare(name: str, find: Callable[[Tensor, Tensor], Tensor], **more: object) -> None:
        for n in {size, len(y) % size or size}:  # each shape once, untimed
            find(x[:n], y[:n])
        start = now(settings)
        robust = find(x, y)
        robust_accuracy = robust.float().mean().item()
        seconds = now(settings) - start
        say({"how": name, "seconds": seconds, "robust_accuracy": robust_accuracy, "n": len(y), **more})

    ours = judged(settings, model, held_out, settings.attack_steps)
    with evaluating(model):
        with engine.convolving_in("fp32"):
            generator = torch.Generator(device).manual_seed(0)
            start = now(settings)
            ours.robust_mask(x[:size], y[:size], generator)
            first_batch_seconds = now(settings) - start
            compare(
                "continuous batching, fp32",
                lambda x, y: ours.robust_mask(x, y, generator),
                first_batch_seconds=first_batch_seconds,
                judged="every iterate",
            )
            say({"how": "clean", "accuracy": accuracy(model, x, y, size)})
        for precision in ("fp32", "tf32"):
            with engine.convolving_in(precision):
                compare(f"{whose}, {precision}", by_torchattacks, judged="the last iterate")


def parity(settings: Settings, say: Say) -> None:
    train, held_out = images(settings)
    held_out = Split(held_out.images[:2000], held_out.labels[:2000])
    x = data.to_float(held_out.images).contiguous(memory_format=torch.channels_last)
    for seed in range(settings.seeds):  # the precisions inside, so that a run cut short has whole pairs
        for precision in ("fp32", "tf32", "bf16"):
            model, seconds = trained(settings, train, precision, seed)
            with engine.convolving_in("fp32"):
                clean = accuracy(model, x, held_out.labels, settings.evaluation_batch)
                generator = torch.Generator(settings.torch_device).manual_seed(0)
                robust = judged(settings, model, held_out, 10).robust_mask(x, held_out.labels, generator)
            row = {"seed": seed, "precision": precision, "clean_accuracy": clean}
            say(row | {"robust_accuracy": robust.float().mean().item(), "n": len(robust), "train_seconds": seconds})


SECTIONS: dict[str, tuple[Callable[[Settings, Say], None], float]] = {  # and the seconds that each may take
    "ceilings": (ceilings, 25),
    "steps": (steps, 190),
    "kernels": (kernels, 60),
    "timed": (partial(tuning, True), 20),
    "heuristic": (partial(tuning, False), 20),
    "packing": (packing, 90),
    "streams": (streams, 30),
    "evaluation": (evaluation, 50),
    "parity": (parity, 105),
}

HEURISTIC = {"heuristic", "packing", "streams"}  # in which cuDNN doesn't time its kernels

ENVIRONMENTS = {"streams": {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}}  # a queue for each, asked for before CUDA starts

MOST_SECONDS = 520.0  # of all together, decoding the images included; of ten minutes starting and ending take some
GRACE_SECONDS = 15.0  # for a section that is told to end


# Running, keeping and showing


def run_section(name: str, settings: Settings, path: Path) -> None:
    """Writes the section's rows to `path` as they come.

    cuDNN times its kernels from the first call of each shape on, whoever makes it, but for `HEURISTIC` ones.
    """
    rows: list[Row] = []

    def say(row: Row) -> None:
        rows.append(row)
        print(f"{name}: {json.dumps(row)}", file=sys.stderr, flush=True)
        write_whole(path, json.dumps(rows).encode())

    with contextlib.nullcontext() if name in HEURISTIC else fastest_convolutions():
        SECTIONS[name][0](settings, say)


def measured(name: str, settings: Settings, argv: list[str], end: float, stretch: float = 1.0) -> Row:
    """One section in a process of its own, which a fault of the device or its time limit ends without the rest.

    Args:
        end: By the performance counter; no section goes on beyond it.
        stretch: Times its own limit that it has: more where only some sections are measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "rows.json", time.perf_counter()
        if settings.device == "cpu":
            run_section(name, settings, path)
            status = "complete"
        else:
            command = [sys.executable, "-m", "benchmarks.engine", *argv, "--section", name, "--out", str(path)]
            seconds = max(1.0, min(SECTIONS[name][1] * stretch, end - start))
            returned = within(seconds, command, ENVIRONMENTS.get(name, {}) | os.environ)
            status = {0: "complete", None: f"cut off after {seconds:.0f} s"}.get(returned, "failed")
        rows = json.loads(path.read_text()) if path.exists() else []
        return {"status": status, "seconds": time.perf_counter() - start, "rows": rows}


def within(seconds: float, command: list[str], environment: Mapping[str, str]) -> int | None:
    """The command's exit status; None if it was cut off.

    Whatever ends the wait, the command is told to end, so that it ends what it has started, and killed if it doesn't.
    """
    # In a session of its own, where a terminal's Ctrl-C doesn't disturb how it ends.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def ending_when_told() -> Iterator[None]:
    """SIGTERM raises, the first time, so that daemons and processes started here are ended on the way out."""

    def leave(number: int, frame: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def hardware(settings: Settings) -> Row:
    found: Row = {"machine": platform.machine(), "cores": os.cpu_count(), "load_average": os.getloadavg()}
    if settings.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_bytes": properties.total_memory,
            "capability": torch.cuda.get_device_capability(),
        }
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found["driver, clocks, power"] = subprocess.run(
                query, capture_output=True, text=True, timeout=20
            ).stdout.strip()
    return found


def versions() -> Row:
    import numpy
    import torchvision

    cudnn = torch.backends.cudnn.version()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
    }


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(message)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--data", help="folder with train/<class>/ and test/<class>/ images; default: made-up images")
    parser.add_argument("--smoke", action="store_true", help="a shrunken form on the CPU")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, separated by commas; default: all")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # what a section's own process is told
    args = parser.parse_args(argv)
    args.sections = args.sections.split(",")
    for name in args.sections:
        if name not in SECTIONS:
            raise InputError(f"sections: {name!r} given; accepted: {', '.join(SECTIONS)}")
    if not args.out.absolute().parent.is_dir():
        raise InputError(f"out: {args.out} given; accepted: a file in a folder that exists")
    if args.data is not None and not Path(args.data).is_dir():
        raise InputError(f"data: {args.data} given; accepted: {data.LAYOUT}")
    if not args.smoke and not torch.cuda.is_available():
        raise InputError("no CUDA device is available; accepted: --smoke, which runs on the CPU")
    return args


def benchmark(args: argparse.Namespace) -> None:
    settings = SMOKE if args.smoke else Settings()
    settings = replace(settings, data=args.data) if args.data else settings
    if settings.device == "cpu":
        torch.set_num_threads(1)  # as a trial has on a CPU
    if args.section:
        return run_section(args.section, settings, args.out)
    argv, end = [], time.perf_counter() + MOST_SECONDS
    if args.data:
        there_are = len(data.imagefolder(args.data).labels)  # decodes once; sections find the cache
        if there_are < (least := settings.n_held_out + max(settings.batch_sizes)):
            raise InputError(f"data: {there_are} images in {args.data}/train given; accepted: at least {least}")
        argv = ["--data", args.data]
    content: Row = {
        "hardware": hardware(settings),
        "versions": versions(),
        "settings": {name: value for name, value in vars(settings).items() if name != "data"},
        "images": "made up" if settings.data is None else "given by --data",
        "floor": FLOOR,
        "sections": {},
    }
    stretch = max(1.0, MOST_SECONDS / sum(SECTIONS[name][1] for name in args.sections))
    for name in args.sections:
        content["sections"][name] = measured(name, settings, argv, end, stretch)
        content["table"] = table(content["sections"])
        content["differences of precisions"] = parity_differences(content["sections"])
        content["epoch at batch 8 / at 128"] = small_against_large(content["table"])
        write_whole(args.out, (json.dumps(content, indent=1) + "\n").encode())
    print(*lines(content["table"], content["sections"]), sep="\n")
    return None


def main(argv: list[str] | None = None) -> int:
    try:
        with ending_when_told():
            benchmark(parse(argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
