"""Search the Pareto front of adversarial accuracy against training seconds.

SPACE names a file of search_spaces/, or is the path of your own Python file of the same shape.
Without any option this trains ResNet-56 on scikit-learn's digits, some 16 trials in a few minutes.
The same command again continues a study that was interrupted, or reports one that is finished.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import click

from study import cli, spaces, storage
from study.folders import check_storage_path, refuse_another_kind, stored_settings
from study.settings import ADDED_LATER, StudySettings, from_layers
from study.spaces import Space
from trainables.config import AttackNorm
from trainables.errors import InputError

# What an accuracy depends on beside the configuration.
MEASURED_UNDER = ("dataset", "attack_norm", "eps", "attack_steps")


@click.command(name="pareto", help=__doc__)
@click.argument("space", required=False)
@click.option("--name", help="Name of the study and of its results folder. [default: the space's name]")
@click.option("--trials", type=int, help="Finished trials in all; may be raised later. [quickstart: 16]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop after this long; the same command goes on.")
@click.option("--dataset", help="digits, cifar10, cifar100, svhn or imagefolder. [quickstart: digits]")
@click.option(
    "--data-dir",
    type=cli.Place(),
    help="Where the images are, or are downloaded to; imagefolder: has train/ and test/.",
)
@click.option("--depth", type=int, help="Layers of the residual network, 6n+2. [quickstart: 56]")
@click.option("--attack-norm", help="linf or l2: of the attack, and of adversarial training. [default: linf]")
@click.option("--eps", type=cli.Fraction(), help="Radius of the attack in pixel units, e.g. 8/255. [quickstart: 0.1]")
@click.option("--attack-steps", type=int, help="PGD steps of the evaluation. [quickstart: 10]")
@click.option("--eval-examples", type=int, help="Validation images attacked at a trial's end. [quickstart: 300]")
@click.option("--sampler", help="front, tpe, nsga2, gp or random. [default: front]")
@click.option(
    "--stop-early/--no-stop-early", default=None, help="End trials that promise the front too little. [default: no]"
)
@click.option(
    "--max-trial-seconds",
    type=float,
    help="Sampler front: propose no trial that would train longer, once steps are timed.",
)
@click.option("--warm-start", metavar="NAME", help="Sampler front: learn from an earlier study beside this one.")
@click.option(
    "--until-gain",
    type=float,
    metavar="SHARE",
    help="Sampler front: stop once a device-hour of training should add less than this share to the hypervolume; "
    "0: never.",
)
@click.option("--seed", type=int, help="Of the sampler and, plus its number, of each trial. [default: 0]")
@click.option("--retries", type=int, help="How often a trial goes on after its worker was lost. [default: 3]")
@click.option("--epoch-timeout", type=float, metavar="SECONDS", help="An epoch this long has hung. [default: 3600]")
@click.option(
    "--objective",
    help="Which seconds count: measured, or calibrated (steps times seconds per step with the device alone). "
    "[default: calibrated where trials share a GPU or a core, else measured]",
)
@click.option("--cpus-per-trial", type=float, help="May be a fraction. [default: 1]")
@click.option("--gpus-per-trial", type=float, help="May be a fraction. [default: 1 where Ray has GPUs, else 0]")
@click.option("--concurrent", type=int, help="Trials at once. [default: as many as fit]")
@click.option("--storage", metavar="URL", help="Optuna storage, e.g. postgresql://… [default: SQLite in the results]")
@click.option("--results-dir", type=cli.Place(), help="Folder of results/<name>/. [default: results]")
@click.option(
    "--storage-path",
    type=cli.Place(),
    metavar="PLACE",
    help="Checkpoints on a cluster: a folder all hosts share, or s3://bucket/folder.",
)
@click.option("--address", help="A running Ray cluster, e.g. auto or ray-head:6379. [default: Ray on this machine]")
@cli.log_level
def command(**given: object) -> int:
    given = {option: value for option, value in given.items() if value is not None}
    settings, space = resolve(given)
    check_storage_path(settings)
    with cli.importing():
        from study.conduct import conduct  # torch, Ray and plotly take five seconds: a typo is answered before

    return conduct(settings, space)


def resolve(given: dict[str, object]) -> tuple[StudySettings, Space]:
    """The settings, from what was given, what the study was made with, and the space; writes nothing."""
    space = spaces.load(str(given.get("space", "quickstart")))
    given = {"name": re.sub(r"[^A-Za-z0-9._-]+", "-", space.path.stem)} | given
    if str(given.get("space", "")).endswith(".py"):
        given["space"] = os.path.abspath(str(given["space"]))  # the study may go on from another working directory
    # Whether a radius is too large depends on the norm, which may be that of a study that is looked for yet.
    unsure = {option: value for option, value in given.items() if option not in ("attack_norm", "eps")}
    stored = stored_settings(from_layers(unsure, None, space.defaults), given)
    refuse_another_kind("search", given["name"], stored)
    if stored is not None and "space" not in given:
        require_still_there(Path(stored["space"]), str(given["name"]), Path(given.get("results_dir", "results")))
        space = spaces.load(str(stored["space"]))
    if stored is None and "eps" not in given:
        require_own_radius(given, space)
    return with_known_start(from_layers(given, stored, space.defaults), "warm_start" in given), space


def require_still_there(file: Path, name: str, results_dir: Path) -> None:
    """Raises:
    InputError: If the study's space is a file of the user's that is gone.
    """
    if file.suffix == ".py" and not file.is_file():
        kept = results_dir / name / "space.py"
        raise InputError(f"space: {file} of study {name!r} is gone; accepted: a copy of {kept}, named {file.name}")


def require_own_radius(given: Mapping[str, object], space: Space) -> None:
    """Raises:
    InputError: If neither the space nor the project has a radius for the norm that a new study attacks in.
    """
    default = StudySettings.model_fields["attack_norm"].default
    own = space.defaults.get("attack_norm", default)
    norm = given.get("attack_norm", own)
    known = norm == own if "eps" in space.defaults else norm == default
    if norm in get_args(AttackNorm) and not known:
        raise InputError(f"eps: nothing given with attack_norm {norm!r}; accepted: its radius, --eps")


def with_known_start(settings: StudySettings, was_given: bool) -> StudySettings:
    """Without a study to start from that was there when this one began, and is not any more.

    Raises:
        InputError: If one that `was_given` now does not exist, or is this study itself.
    """
    if settings.warm_start is None:
        return settings
    if settings.warm_start == settings.name:
        raise InputError(f"warm_start: {settings.name!r} given, the study itself; accepted: an earlier one")
    try:
        earlier = storage.named(settings.warm_start, settings.results_dir, settings.storage, field="warm_start")
    except InputError:
        if was_given:
            raise
        click.echo(f"warm_start: study {settings.warm_start!r} is gone; going on without its trials", err=True)
        return settings.model_copy(update={"warm_start": None})
    theirs, ours = ADDED_LATER | earlier.user_attrs.get("settings", {}), settings.model_dump(mode="json")
    others = [f"{field} {theirs[field]}" for field in MEASURED_UNDER if theirs.get(field, ours[field]) != ours[field]]
    if others and was_given:
        click.echo(
            f"warm_start: study {settings.warm_start!r} has {', '.join(others)}; what is proposed will count its "
            "accuracies as this study's",
            err=True,
        )
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
