"""Records real trainings for the replay: a random sample of the `full` space, every epoch of each.

    python -m benchmarks.replay.record trials.jsonl
    python -m benchmarks.replay.record --calibrate benchmarks/results/replay/steps.csv
    python -m benchmarks.replay.record --compact trials.jsonl

The first trains until it is stopped, one trial after the other on one CPU core; the same command goes on. What
makes a trial cost seconds: 320 images of digits, a residual network of two stages of 8 and 16 channels, half of the
space's epochs, PGD steps and replays, and an adversarial accuracy by three steps of PGD on 100 images after each epoch
and on 600 at the end. All else is the space's.

The second measures seconds per step in CPU time, since the sample may be recorded beside other work; a trial's time
is the sum over its steps. The third packs what the first made.
"""

import json
import lzma
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
import optuna
import pandas as pd
import torch

from study import cli, spaces
from study.settings import StudySettings
from trainables import adversarial, data, engine, resnet
from trainables.config import EvalConfig, TrialConfig
from trainables.sgd import SGD
from trainables.trial import Diverged, Trial

RESULTS = Path(__file__).parents[1] / "results" / "replay"
N_TRAIN = 320
CHANNELS = (8, 16)
VALIDATION_FRACTION = 1180 / 1500
EVALUATION = EvalConfig(eps=0.06, attack_steps=3, examples=600, curve_examples=100)
SETTINGS = StudySettings(name="replay", space="full", dataset="digits", depth=8, eps=0.06)
N_BEFORE_REPEATS, N_REPEATED, N_REPEATS = 60, 12, 3  # the first 12 get three more seeds after trial 60
N_RANDOM = 1000

NORMS = ("batchnorm", "robustnorm", "groupnorm", "fixup")
BATCH_SIZES = (8, 16, 32, 64, 128, 256, 320)
RECIPES = [("natural", 0), ("fgsm", 1), ("pgd", 1), ("pgd", 5), ("trades", 1), ("trades", 5), ("free", 1), ("free", 4)]


def shortened(config: TrialConfig) -> TrialConfig:
    """The same training with half the epochs, attack steps and replays."""
    schedule = config.batch_size_schedule
    if schedule.kind == "milestones":
        schedule = schedule.model_copy(update={"milestones": tuple(m // 2 for m in schedule.milestones)})
    halves = {name: (getattr(config, name) + 1) // 2 for name in ("pgd_steps", "free_replays")}
    return config.model_copy(update={"epochs": config.epochs // 2, "batch_size_schedule": schedule, **halves})


def plan() -> Iterator[tuple[int, dict[str, object], TrialConfig]]:
    """Number of the configuration, what the space suggested, and what is trained, seed included."""
    space = spaces.load("full")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sample = []
    for number in range(N_RANDOM):
        trial = study.ask()
        sample.append((number, trial, shortened(spaces.configure(space, SETTINGS, trial))))
    repeats = [
        (number, trial, config.model_copy(update={"seed": 10_000 * repeat + number}))
        for repeat in range(1, N_REPEATS + 1)
        for number, trial, config in sample[:N_REPEATED]
    ]
    for number, trial, config in [*sample[:N_BEFORE_REPEATS], *repeats, *sample[N_BEFORE_REPEATS:]]:
        yield number, trial.params, config


def train(config: TrialConfig, dataset: data.Dataset) -> dict[str, object]:
    """The curve, and why it ended early if it did."""
    trial, reason = Trial(config, dataset, EVALUATION, torch.device("cpu")), ""
    try:
        while not trial.done:
            trial.train_epoch()
    except Diverged as error:
        reason = f"diverged: {error}"
    columns = ("adversarial_accuracy", "clean_accuracy", "train_loss", "batch_size", "train_seconds")
    return {"failure": reason, "curve": [[row[column] for column in columns] for row in trial.curve]}


def record(path: Path) -> None:
    torch.set_num_threads(1)
    resnet.CHANNELS = CHANNELS
    dataset = data.load("digits", None, validation_fraction=VALIDATION_FRACTION)
    assert len(dataset.train) == N_TRAIN
    done = set()
    if path.exists():
        done = {(row["number"], row["config"]["seed"]) for row in map(json.loads, path.read_text().splitlines())}
    for number, params, config in plan():
        if (number, config.seed) in done:
            continue
        start = time.process_time()
        row = train(config, dataset)
        row |= {"number": number, "params": params, "config": config.model_dump(mode="json")}
        row["cpu_seconds"] = time.process_time() - start
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def calibrate(path: Path, n_rounds: int = 5) -> None:
    """Seconds per step of every norm, recipe and batch size: the least of several rounds, in CPU time."""
    torch.set_num_threads(1)
    resnet.CHANNELS = CHANNELS
    dataset = data.load("digits", None, validation_fraction=VALIDATION_FRACTION)
    rows = {}
    for _ in range(n_rounds):
        for norm in NORMS:
            for training, n in RECIPES:
                config = TrialConfig(
                    depth=8, norm=norm, training=training, eps=0.06, pgd_steps=max(n, 1), free_replays=max(n, 1)
                )
                for size in BATCH_SIZES:
                    seconds = step_seconds(config, dataset, size)
                    key = (norm, training, n, size)
                    rows[key] = min(seconds, rows.get(key, np.inf))
    frame = pd.DataFrame(
        [(*key, seconds) for key, seconds in rows.items()],
        columns=["norm", "training", "n_attack_steps", "batch_size", "seconds"],
    )
    frame.to_csv(path, index=False, float_format="%.4g")


def step_seconds(config: TrialConfig, dataset: data.Dataset, size: int) -> float:
    generator = torch.Generator().manual_seed(0)
    model = resnet.resnet(config.depth, dataset.num_classes, dataset.in_channels, config.norm, generator=generator)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = SGD(model, momentum=0.9, nesterov=False, weight_decay=5e-4)
    step = adversarial.step(config, generator)
    run = partial(step, model, optimizer, *engine.batch(dataset.train, torch.arange(size)))
    run()
    start, n = time.process_time(), 0
    while time.process_time() - start < 0.03:
        run()
        n += 1
    return (time.process_time() - start) / n


def compact(path: Path) -> None:
    """Both files as the replay reads them."""
    trials = [json.loads(line) for line in path.read_text().splitlines()]
    for trial in trials:
        trial["curve"] = [[round(value, 4) for value in row] for row in trial["curve"]]
        trial["cpu_seconds"] = round(trial["cpu_seconds"], 2)
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"n_examples": N_TRAIN, "trials": trials}).encode()
    (RESULTS / "trials.json.xz").write_bytes(lzma.compress(content, preset=9))


@click.command(name="record", help=__doc__.partition("\n")[0])
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--calibrate", "make", flag_value=calibrate, help="Measure seconds per step instead.")
@click.option("--compact", "make", flag_value=compact, help="Pack what was recorded instead.")
def command(path: Path, make: Callable[[Path], None] | None) -> None:
    (make or record)(path)


if __name__ == "__main__":
    sys.exit(cli.run(command, None, package="benchmarks.replay"))
