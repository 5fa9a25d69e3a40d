"""Trials per hour of a study, beside a plain Ray Tune script that trains the same trials.

Command: python -m benchmarks.throughput --depth 56 --rounds 2 --repeats 3 --concurrent 2 --out throughput.json
Measured: 2.15 times as many trials per hour (in both of 2 rounds), and 1.85 times as many with `--rounds 3` alone
(1.84 to 1.86), on two cores of an AMD EPYC, torch 2.15.0, Ray 2.60.0; every timing is in benchmarks/results,
throughput-two-cores-15-trials.json and throughput-two-cores.json.
Needs torchattacks, which `make test` installs; run it on an otherwise idle machine.
Hardware and versions: those of the run; both are in its JSON.
Sample size: 5 trials (`CONFIGURATIONS`) of 5 epochs on digits, or `--repeats` times as many, each `--rounds` times on
each side. A plain script starts each trial anew, a study its workers once: with more trials it gains more.
Baseline: benchmarks/plain.py, written after Ray Tune's CIFAR-10 and Fixup's examples.

Both sides run under one `ray.init`, in turn: study, plain, study, plain, ... A side's time is wall clock around its
`Tuner.fit`, from building the tuner to the return of `fit`; the study's includes making its database and telling it
every result. `ray.init` is excluded on both sides, and so is the report that a study writes at its end.

Equal on both sides: the trials' configurations and their order, networks and initial weights, the split of the data,
epochs, batch sizes, learning rates and optimizer; one CPU and one thread for a trial, the number of trials at once;
an evaluation after each epoch (clean, then PGD-10 with eps 0.1 from a random start, on 75 validation images, on 300
after the last), in batches of 256; a checkpoint after each epoch; Tune's own loggers; Ray's environment.

Different, and what is measured:

                     study                                plain
    actors           reused from trial to trial           fresh for each trial
    images           one uint8 tensor, a batch by index   PIL, transforms, two worker processes a loader
    memory format    channels last                        contiguous
    2x2 pixels       a matrix product                     torch's convolution
    optimizer        fused                                torch's default
    loss             read once an epoch                   `loss.item()` at each step
    PGD              an example stops when it is fooled,  every step with every example,
                     every iterate is judged              the last iterate is judged
    checkpoint       own file, the newest                 `torch.save` into a Tune checkpoint, all kept
    besides          a warm-up step per batch size,       nothing
                     steps timed for calibration,
                     Optuna's database, tables and
                     weights of the front

That the work is equal follows from the configurations, which are asserted to be the same on both sides, and can't be
seen from accuracies. Those are printed for information: the order of batches and the random starts differ too, and
after so few epochs single seeds differ by up to tens of points, either way (Fixup 8→128 in the JSON above: clean 0.44
and 0.66 of 300 images). A judged iterate can only lower adversarial accuracy.
"""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import click
import optuna
from ray import tune
from rich.console import Console
from rich.table import Table

from study import cli, runner, search, storage
from study.progress import Progress
from study.results import PACKAGES, is_complete
from study.settings import StudySettings, from_layers
from study.sole_writer import SoleWriter
from study.spaces import Space, configure
from trainables import devices
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.files import write_whole

PAUSE = 3.0  # seconds, untimed, in which one side's workers exit before the other side starts

SETTINGS_IN_JSON = {"dataset", "depth", "eps", "attack_steps", "eval_examples", "cpus_per_trial", "concurrent", "seed"}

# The longest first, so that no side waits long for its last trial alone.
CONFIGURATIONS = {
    "Fixup 8→128": {"norm": "fixup", "batch_size_schedule.kind": "geometric", "batch_size_schedule.first": 8},
    "Fixup 32": {"norm": "fixup", "batch_size_schedule.kind": "constant", "batch_size_schedule.size": 32},
    "BatchNorm 32": {"norm": "batchnorm", "batch_size_schedule.kind": "constant", "batch_size_schedule.size": 32},
    "BatchNorm 128": {"norm": "batchnorm", "batch_size_schedule.kind": "constant", "batch_size_schedule.size": 128},
    "Fixup 128": {"norm": "fixup", "batch_size_schedule.kind": "constant", "batch_size_schedule.size": 128},
}


@dataclass(frozen=True)
class Ended:
    """One trial, when it had ended."""

    label: str
    clean_accuracy: float
    adversarial_accuracy: float
    n_examples: int
    train_seconds: float  # training alone, as each side measures its own
    seconds: float  # study: from proposal to end, actor's start included; plain: from the function's start


@dataclass(frozen=True)
class Side:
    """One side of one round."""

    seconds: float  # wall clock
    trials: list[Ended]

    @property
    def trials_per_hour(self) -> float:
        return 3600 * len(self.trials) / self.seconds


@dataclass(frozen=True)
class Round:
    study: Side
    plain: Side

    @property
    def ratio(self) -> float:
        return self.study.trials_per_hour / self.plain.trials_per_hour


def space(trial: optuna.Trial) -> dict[str, object]:
    """What `CONFIGURATIONS` and the number of epochs vary; returns the constants, those of the quickstart space."""
    constants: dict[str, object] = {"lr_batch_ratio": 5e-4, "momentum": 0.9, "weight_decay": 5e-4}
    if trial.suggest_categorical("batch_size_schedule.kind", ["constant", "geometric"]) == "constant":
        trial.suggest_int("batch_size_schedule.size", 1, 1024)
    else:
        trial.suggest_int("batch_size_schedule.first", 1, 128)
        constants["batch_size_schedule.last"] = 128
    trial.suggest_categorical("norm", ["batchnorm", "fixup"])
    trial.suggest_int("epochs", 1, 1000)
    return constants


def trial_configs(fixed: Space, settings: StudySettings) -> dict[str, TrialConfig]:
    """The trials as the study will configure them, by label, in order."""
    study = optuna.create_study(directions=storage.DIRECTIONS)
    search.enqueue_baselines(study, fixed)
    return {label: configure(fixed, settings, study.ask()) for label in fixed.baselines}


def run_study(
    fixed: Space, settings: StudySettings, resources: dict[str, float], configs: dict[str, TrialConfig]
) -> Side:
    """This project's side.

    Raises:
        RuntimeError: If a trial did not end as it should.
    """
    settings.folder.mkdir(parents=True)
    start = time.perf_counter()
    study = storage.open_study(SoleWriter(storage.from_url(settings.storage_url)), settings.name)
    search.enqueue_baselines(study, fixed)  # all trials there are: no sampler is asked
    silent = Progress(Console(quiet=True), settings.trials, 0)
    objective = runner.resolve_objective(study, settings, resources)
    ending = runner.run(study, partial(configure, fixed, settings), settings, resources, silent, objective)
    seconds = time.perf_counter() - start
    if ending == "interrupted":
        raise KeyboardInterrupt
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if not is_complete(trial):
            raise RuntimeError(f"study: trial {trial.number} {trial.state.name}: {trial.user_attrs.get('reason')}")
    given = [config.model_dump(mode="json") for config in configs.values()]
    assert [trial.user_attrs["config"] for trial in trials] == given, "both sides train the same configurations"
    return Side(seconds, [ended_in_study(trial) for trial in trials])


def ended_in_study(trial: optuna.trial.FrozenTrial) -> Ended:
    attrs = trial.user_attrs
    return Ended(
        label=attrs["label"],
        clean_accuracy=attrs["clean_accuracy"],
        adversarial_accuracy=trial.values[0],
        n_examples=attrs["n_examples"],
        train_seconds=attrs["measured_seconds"],
        seconds=trial.duration.total_seconds(),
    )


def run_plain(settings: StudySettings, resources: dict[str, float], configs: dict[str, TrialConfig]) -> Side:
    """The baseline's side.

    Raises:
        RuntimeError: If a trial failed.
    """
    from benchmarks import plain  # which needs torchattacks

    labels = {config.seed: label for label, config in configs.items()}  # a trial's seed is its own
    gpus = runner.gpus_per_trial(settings, resources)
    start = time.perf_counter()
    tuner = tune.Tuner(
        tune.with_resources(plain.train, {"cpu": settings.cpus_per_trial, "gpu": gpus}),
        param_space={
            "trial": tune.grid_search([config.model_dump(mode="json") for config in configs.values()]),
            "evaluation": settings.evaluation.model_dump(mode="json"),
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=settings.concurrent),
        run_config=tune.RunConfig(name="plain", storage_path=str(settings.folder.absolute()), verbose=0),
    )
    results = tuner.fit()
    seconds = time.perf_counter() - start
    for error in results.errors:
        raise RuntimeError("plain: a trial failed") from error
    trials = [ended_in_plain(result, labels[result.config["trial"]["seed"]]) for result in results]
    return Side(seconds, sorted(trials, key=lambda trial: list(configs).index(trial.label)))


def ended_in_plain(result: tune.Result, label: str) -> Ended:
    names = ("clean_accuracy", "adversarial_accuracy", "n_examples", "train_seconds")
    return Ended(label=label, seconds=result.metrics["time_total_s"], **{name: result.metrics[name] for name in names})


def measure(fixed: Space, settings: StudySettings, n_rounds: int, log: Console) -> tuple[list[Round], dict[str, float]]:
    """Both sides in turn, `n_rounds` times, and the resources that Ray had.

    Raises:
        InputError: If fewer than `settings.concurrent` trials fit at once.
    """
    configs, rounds = trial_configs(fixed, settings), []
    with runner.cluster(settings) as resources:
        fit = runner.n_concurrent(settings, resources)
        if fit < settings.concurrent:
            raise InputError(
                f"concurrent: {settings.concurrent} given; accepted: at most {fit}, all that Ray has room for"
            )
        for number in range(1, n_rounds + 1):
            sides = []
            for side in ("study", "plain"):
                time.sleep(PAUSE)
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    here = settings.model_copy(update={"results_dir": folder})
                    if side == "study":
                        sides.append(run_study(fixed, here, resources, configs))
                    else:
                        sides.append(run_plain(here, resources, configs))
                log.print(f"round {number} of {n_rounds}, {side}: {sides[-1].seconds:.1f} s", highlight=False)
            rounds.append(Round(*sides))
    return rounds, resources


def round_table(rounds: Sequence[Round]) -> Table:
    table = Table("round", title="Trials per hour", title_justify="left")
    for heading in ("study [s]", "plain [s]", "study [1/h]", "plain [1/h]", "ratio"):
        table.add_column(heading.replace("[", r"\["), justify="right")
    for number, each in enumerate(rounds, start=1):
        table.add_row(
            str(number),
            f"{each.study.seconds:.1f}",
            f"{each.plain.seconds:.1f}",
            f"{each.study.trials_per_hour:.1f}",
            f"{each.plain.trials_per_hour:.1f}",
            f"{each.ratio:.2f}",
        )
    return table


def configuration_rows(rounds: Sequence[Round]) -> list[dict[str, object]]:
    """Each configuration's means over rounds, both sides."""
    rows = []
    for trials in zip(*[side.trials for each in rounds for side in (each.study, each.plain)], strict=True):
        row: dict[str, object] = {"label": trials[0].label, "n_examples": trials[0].n_examples}
        for side, ended in [("study", trials[::2]), ("plain", trials[1::2])]:
            for name in ("clean_accuracy", "adversarial_accuracy", "train_seconds"):
                row[f"{side}_{name}"] = mean(getattr(trial, name) for trial in ended)
        rows.append(row)
    return rows


def configuration_table(rows: Sequence[dict[str, object]]) -> Table:
    table = Table("configuration", title="Means over rounds: study / plain", title_justify="left")
    for heading in ("clean", "adversarial", "n", "training seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["label"]),
            f"{row['study_clean_accuracy']:.3f} / {row['plain_clean_accuracy']:.3f}",
            f"{row['study_adversarial_accuracy']:.3f} / {row['plain_adversarial_accuracy']:.3f}",
            str(row["n_examples"]),
            f"{row['study_train_seconds']:.1f} / {row['plain_train_seconds']:.1f}",
        )
    return table


def spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(ratios), "low": min(ratios), "high": max(ratios)}


def side_json(side: Side) -> dict[str, object]:
    return asdict(side) | {"trials_per_hour": side.trials_per_hour}


def hardware(resources: dict[str, float]) -> dict[str, object]:
    """Without the nodes' addresses, which Ray lists among its resources."""
    ray_resources = {name: amount for name, amount in resources.items() if not name.startswith("node:")}
    return {
        "cpu": devices.processor(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "ray_resources": ray_resources,
    }


@click.command(name="throughput", help=__doc__.partition("\n")[0])
@click.option("--depth", type=int, default=56, show_default=True, help="Layers of the residual network, 6n+2.")
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True, help="How often each side runs.")
@click.option("--concurrent", type=click.IntRange(min=1), default=2, show_default=True, help="Trials at once.")
@click.option("--epochs", type=click.IntRange(1, 1000), default=5, show_default=True, help="Of each trial.")
@click.option(
    "--configurations",
    type=click.IntRange(1, len(CONFIGURATIONS)),
    default=len(CONFIGURATIONS),
    show_default=True,
    help="How many of the list, from its start.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file. [default: none is written]")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trials of each, with seeds of their own.",
)
@cli.log_level
def command(
    depth: int, rounds: int, concurrent: int, epochs: int, configurations: int, out: Path | None, repeats: int
) -> int:
    if find_spec("torchattacks") is None:
        raise InputError("torchattacks: not installed; accepted: an environment that `make test` has made")
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"out: {out} given; accepted: a file in a folder that exists")
    chosen = {
        label + (f", {n}" if n > 1 else ""): {**CONFIGURATIONS[label], "epochs": epochs}
        for label in list(CONFIGURATIONS)[:configurations]
        for n in range(1, repeats + 1)
    }
    settings = from_layers(
        {
            "name": "throughput",
            "trials": len(chosen),
            "dataset": "digits",
            "depth": depth,
            "eps": 0.1,
            "attack_steps": 10,
            "eval_examples": 300,
            "concurrent": concurrent,
        },
        None,
        {},
    )
    fixed = Space(Path(__file__), space, chosen, {})
    load_before = os.getloadavg()
    measured, resources = measure(fixed, settings, rounds, Console(stderr=True))

    ratio, rows = spread([each.ratio for each in measured]), configuration_rows(measured)
    console = Console(file=sys.stdout)
    console.print(
        f"{devices.processor()}, {os.cpu_count()} cores; depth {depth}, {len(chosen)} trials of {epochs} epochs"
    )
    console.print(round_table(measured))
    console.print(configuration_table(rows))
    console.print(
        f"A study runs {ratio['mean']:.2f} times as many trials per hour "
        f"({ratio['low']:.2f} to {ratio['high']:.2f} in {rounds} round{'s' * (rounds > 1)}).",
        highlight=False,
    )
    if out is not None:
        content = {
            "hardware": hardware(resources) | {"load_average_before": load_before},
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in (*PACKAGES, "torchattacks")},
            "settings": settings.model_dump(mode="json", include=SETTINGS_IN_JSON) | {"epochs": epochs},
            "configurations": chosen,
            "rounds": [
                {"study": side_json(each.study), "plain": side_json(each.plain), "ratio": each.ratio}
                for each in measured
            ],
            "by_configuration": rows,
            "ratio": ratio,
        }
        write_whole(out, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv, package="benchmarks")


if __name__ == "__main__":
    sys.exit(main())
