"""A reproduction from its settings to its verdicts: a fixed list of trials, run like any study, then tables."""

import io
import json
import math
import shlex
from datetime import UTC
from functools import partial

import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table

from study import images, search, storage
from study.conduct import NOT_STORED, carry_out, command_line, say_end
from study.papers.claims import Claim, Measured, by_seed, interval, text, verdict
from study.papers.paper import Column, Paper, Trials, trial_configs
from study.papers.settings import ReproductionSettings
from study.results import attack_text, is_complete, sync_models, write_tables
from study.settings import Objective
from study.sole_writer import SoleWriter
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.files import write_whole
from trainables.stores import Unreachable

COLUMNS = ("label", "seed", "clean_accuracy", "adversarial_accuracy", "train_seconds", "n_examples", "curve")

MOST_COLUMNS = 5  # quantities beside each other on a terminal


def reproduce(settings: ReproductionSettings, paper: Paper) -> int:
    """Run the paper's trials that have not run yet and write the results; returns the exit status.

    Raises:
        InputError: If the images cannot be used or the study is being run already; nothing is written then.
    """
    configs = trial_configs(paper, settings)
    dataset, seen = images.load(settings)
    n_train = len(dataset.train)
    for label, config in configs:
        if config.batch_size_schedule.largest > n_train:
            raise InputError(f"dataset: {n_train} training images, fewer than a batch of {label!r}; accepted: more")
    opened = partial(images.kept, seen, partial(prepare, settings, configs))
    return carry_out(settings, opened, configure, partial(finish, paper))


def prepare(settings: ReproductionSettings, configs: list[tuple[str, TrialConfig]]) -> optuna.Study:
    """The study as it stands: interrupted trials handed out again, and each configuration enqueued once."""
    sampler = optuna.samplers.RandomSampler(seed=settings.seed)  # nothing is left to sample
    study = storage.open_study(SoleWriter(storage.from_url(settings.storage_url)), settings.name, sampler)
    study.set_user_attr("settings", settings.model_dump(mode="json", exclude=NOT_STORED))
    search.requeue_interrupted(study)
    known = [
        TrialConfig(**t.user_attrs["config"]) for t in study.get_trials(deepcopy=False) if "config" in t.user_attrs
    ]
    for label, config in configs:
        if config not in known:
            study.enqueue_trial({}, user_attrs={"label": label, "config": config.model_dump(mode="json")})
    return study


def configure(trial: optuna.Trial) -> TrialConfig:
    raise AssertionError(f"trial {trial.number} was handed out without its configuration")


def trials_frame(trials: list[FrozenTrial], objective: Objective) -> Trials:
    """The trials that ran their whole schedule: who they are and what was measured of them.

    `train_seconds`, also of the curve's rows, are those that the study counts, measured or calibrated.
    """
    rows = [
        {
            "label": trial.user_attrs["label"],
            "seed": trial.user_attrs["config"]["seed"],
            "clean_accuracy": trial.user_attrs["clean_accuracy"],
            "adversarial_accuracy": trial.values[0],
            "train_seconds": trial.values[1],
            "n_examples": trial.user_attrs["n_examples"],
            "curve": [row | {"train_seconds": search.seconds(row, objective)} for row in trial.user_attrs["curve"]],
        }
        | trial.user_attrs.get("probes", {})
        for trial in trials
        if is_complete(trial)
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(COLUMNS))


def judged(claims: list[Claim], trials: Trials) -> list[tuple[Claim, Measured, str]]:
    """Each claim with what was measured of it and the verdict."""
    found = [(claim, claim.measure(trials)) for claim in claims]
    return [(claim, measured, verdict(measured, claim.true_between)) for claim, measured in found]


def finish(paper: Paper, study: optuna.Study, settings: ReproductionSettings, console: Console, ending: str) -> None:
    """Write table.csv, table.md and figure.png from the storage, and print the tables."""
    everything = study.get_trials(deepcopy=False)
    folder = settings.folder
    try:
        sync_models(everything, folder, settings.checkpoints)
    except Unreachable as error:
        console.print(f"Checkpoints and weights stay where they are: {error}", soft_wrap=True)
    write_tables(study, folder)
    objective = study.user_attrs.get("objective", "measured")
    trials = paper.derive(trials_frame(everything, objective))
    labels = list(paper.configurations(settings))
    verdicts = judged(paper.claims(settings), trials)
    heading = summary(paper, settings, everything, trials, objective)
    write_whole(folder / "table.csv", flat_table(paper, labels, trials, verdicts).to_csv(index=False).encode())
    write_whole(folder / "table.md", markdown(paper, settings, heading, labels, trials, verdicts).encode())
    write_whole(folder / "figure.png", figure(paper, settings, trials))
    console.print("\n".join(heading), highlight=False)
    console.print(claims_table(verdicts))
    for first in range(0, len(paper.columns), MOST_COLUMNS):
        console.print(configurations_table(paper.columns[first : first + MOST_COLUMNS], labels, trials))
    files = [folder / name for name in ("table.md", "table.csv", "figure.png", "trials.csv", "study.json")]
    named = ["--name", settings.name] if settings.name != f"reproduce-{settings.paper}" else []
    again = command_line(settings, "reproduce", settings.paper, *named)
    say_end(console, study, settings, files, ending, again, f"More seeds: {again} --seeds {settings.seeds * 2}")


def summary(
    paper: Paper, settings: ReproductionSettings, everything: list[FrozenTrial], trials: Trials, objective: Objective
) -> list[str]:
    """What was run, on what, in lines for people."""
    ended = [trial.datetime_complete for trial in everything if trial.datetime_complete is not None]
    failed = sum(trial.state.name == "FAIL" for trial in everything)
    n_images = f"{int(trials['n_examples'].iloc[0])} " if len(trials) else ""
    attacked = "the final weights" if settings.protocol == "whitebox" else "the initial weights, once"
    until = f", until {max(ended).astimezone(UTC):%Y-%m-%d %H:%M} UTC" if ended else ""
    lines = [
        f"{paper.title} ({paper.source})",
        f"{settings.scale} scale: {settings.dataset}, ResNet-{settings.depth}, {settings.epochs} epochs, "
        f"{settings.seeds} seeds; {len(trials)} of {settings.trials} trials complete, {failed} failed{until}",
        f"attack: {attack_text(settings.attack)} in pixel units, against {attacked} "
        f"({settings.protocol} protocol); {n_images}test images; seconds are {objective} training seconds",
        f"published recipe: {paper.recipe}",
    ]
    return lines + hardware(settings)


def hardware(settings: ReproductionSettings) -> list[str]:
    """From study.json, which the run wrote: this process may be elsewhere."""
    try:
        written = json.loads((settings.folder / "study.json").read_text())
    except FileNotFoundError:
        return []
    resources = ", ".join(
        f"{written['hardware']['ray_resources'][kind]:g} {kind}"
        for kind in ("CPU", "GPU")
        if kind in written["hardware"]["ray_resources"]
    )
    versions = ", ".join(f"{name} {number}" for name, number in written["versions"].items())
    return [f"hardware: {written['hardware']['machine']}, {resources}; versions: {versions}"]


def flat_table(
    paper: Paper, labels: list[str], trials: Trials, verdicts: list[tuple[Claim, Measured, str]]
) -> pd.DataFrame:
    """Claims and configurations, one quantity a row, for programs."""
    claims = [
        {"kind": "claim", "name": claim.text, "quantity": claim.unit, "published": claim.published}
        | measured._asdict()
        | {"verdict": said}
        for claim, measured, said in verdicts
    ]
    configurations = [
        {"kind": "configuration", "name": label, "quantity": column.name} | measured._asdict()
        for label in labels
        for column, measured in zip(paper.columns, measured_of(paper.columns, label, trials), strict=True)
    ]
    return pd.DataFrame(claims + configurations)


def measured_of(columns: tuple[Column, ...], label: str, trials: Trials) -> list[Measured]:
    """Mean and interval over seeds of each column, in the column's own units."""
    return [interval(by_seed(trials, column.name, [label])[label]) for column in columns]


def cell(column: Column, measured: Measured, short: bool) -> str:
    """`44.9 [41.5, 48.3]`, or short, `44.9 ± 3.4`; of seeds that did or didn't, `1 of 3`."""
    if not measured.n:
        return "–"
    if column.counts:
        return f"{round(measured.estimate * measured.n)} of {measured.n}"
    bounds = max(measured.low, column.least), min(measured.high, column.most)
    mean, low, high = (f"{value * column.factor:.{column.digits}f}" for value in (measured.estimate, *bounds))
    if not math.isfinite(measured.high):
        return mean
    half = (measured.high - measured.low) / 2 * column.factor
    return f"{mean} ± {half:.{column.digits}f}" if short else f"{mean} [{low}, {high}]"


def configuration_rows(
    columns: tuple[Column, ...], labels: list[str], trials: Trials, short: bool = False
) -> list[list[str]]:
    """Label, number of seeds, and each column's mean with its interval."""
    rows = []
    for label in labels:
        cells = [cell(c, m, short) for c, m in zip(columns, measured_of(columns, label, trials), strict=True)]
        rows.append([label, str((trials["label"] == label).sum()), *cells])
    return rows


def claims_table(verdicts: list[tuple[Claim, Measured, str]]) -> Table:
    table = Table(title="Claims", title_justify="left", show_lines=True)
    for name in ("claim", "published", "measured [95 %]", "n", "verdict"):
        table.add_column(name, overflow="fold")
    for claim, measured, said in verdicts:
        table.add_row(claim.text, claim.published, text(measured, claim.unit), str(measured.n), said)
    return table


def configurations_table(columns: tuple[Column, ...], labels: list[str], trials: Trials) -> Table:
    table = Table(title="Configurations: mean over seeds, 95 % interval", title_justify="left")
    table.add_column("configuration", min_width=min(34, max(map(len, labels))))
    for name in ("n", *(column.heading for column in columns)):
        table.add_column(name, justify="right")
    for row in configuration_rows(columns, labels, trials, short=True):
        table.add_row(*row)
    return table


def markdown(
    paper: Paper,
    settings: ReproductionSettings,
    heading: list[str],
    labels: list[str],
    trials: Trials,
    verdicts: list[tuple[Claim, Measured, str]],
) -> str:
    claims = [
        [claim.text, claim.published, text(measured, claim.unit), str(measured.n), said]
        for claim, measured, said in verdicts
    ]
    columns = ["configuration", "n", *(column.heading for column in paper.columns)]
    explained = (
        "Intervals are 95 % Student t intervals over seeds, of differences and ratios (their logarithms) within a seed "
        "where two configurations are compared; n is the number of seeds. `reproduced`: the interval lies wholly where "
        "the claim says; `contradicted`: wholly elsewhere; `inconclusive at this scale`: neither. All are judged on "
        "the same images: what others would change is in no interval. Each claim is judged by itself, and of twenty "
        "such intervals one misses the truth."
    )
    parts = [
        f"# Reproduction: {settings.paper}",
        "\n".join(f"* {line}" for line in [*heading, f"command: `{full_command(settings)}`"]),
        "## Claims",
        explained,
        pipes(["claim", "published", "measured", "n", "verdict"], claims),
        "## Configurations",
        pipes(columns, configuration_rows(paper.columns, labels, trials)),
        "![figure](figure.png)",
    ]
    return "\n\n".join(parts) + "\n"


def full_command(settings: ReproductionSettings) -> str:
    """What makes the same study from nothing; where it lies is left out."""
    given = ["python", "-m", "study.reproduce", settings.paper, "--scale", settings.scale, "--seeds", settings.seeds]
    given += ["--dataset", settings.dataset, "--depth", settings.depth, "--epochs", settings.epochs]
    given += ["--eps", settings.eps, "--seed", settings.seed, "--protocol", settings.protocol]
    return shlex.join(map(str, given))


def pipes(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(value.replace('|', '∣') for value in line)} |" for line in lines)


def figure(paper: Paper, settings: ReproductionSettings, trials: Trials) -> bytes:
    """The paper's picture as PNG."""
    drawn = Figure(figsize=(10.5, 4.6), layout="constrained")
    if len(trials):
        paper.draw(drawn, trials, settings)
        drawn.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    drawn.suptitle(
        f"{settings.paper}: {settings.dataset}, ResNet-{settings.depth}, {settings.epochs} epochs, "
        f"{attack_text(settings.attack)} in pixel units",
        fontsize=10,
    )
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
