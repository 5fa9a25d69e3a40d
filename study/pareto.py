"""Search the Pareto front of adversarial accuracy against training seconds.

SPACE names a file of search_spaces/, or is the path of your own Python file of the same shape.
Without any option this trains ResNet-56 on scikit-learn's digits, some 16 trials in a few minutes.
The same command again continues a study that was interrupted, or reports one that is finished.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import click
import optuna

from study import cli, spaces, storage
from study.settings import ADDED_LATER, RUN_SETTINGS, StudySettings, from_layers, normalised
from study.spaces import Space
from trainables import stores
from trainables.config import AttackNorm
from trainables.errors import InputError

MIN_FREE_BYTES = 100_000_000  # a few checkpoints and logs
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
        space = spaces.load(str(stored["space"]))
    if stored is None and "eps" not in given:
        require_own_radius(given, space)
    return with_known_start(from_layers(given, stored, space.defaults), "warm_start" in given), space


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


def stored_settings(settings: StudySettings, given: Mapping[str, object] | None = None) -> dict[str, object] | None:
    """What the study of this name was made with; None where there is no such study yet.

    Args:
        settings: As they would be of a new study.
        given: Options of the command line; one study's images may lie in another `data_dir` than before.

    Raises:
        InputError: If the results folder has no room or holds something else, or the study is another program's.
    """
    check_room(settings)
    folder = settings.folder
    others = [path for path in folder.glob("*") if not path.name.startswith(".")]  # our lock is hidden
    if settings.storage is None and others and not (folder / "study.db").exists():
        raise InputError(f"name: {folder} holds files but no study.db; accepted: a new --name, or an empty folder")
    if settings.storage is not None:
        storage.require_folder(settings.storage)
    study = storage.existing(settings.storage_url, settings.name)
    if study is None and settings.storage is None and (held := storage.names(settings.storage_url)):
        raise InputError(f"name: {folder} holds study {held[0]!r}; accepted: a folder of that name, or a new --name")
    if study is not None and not storage.made_here(study):
        raise InputError(f"name: {settings.name!r} is another program's study in that storage; accepted: a new --name")
    stored = storage.settings_of(study, given or {})
    if stored is not None and "search" in stored:
        raise InputError(f"name: {settings.name!r} is a confirmation; accepted: the search {stored['search']!r}")
    if settings.storage is not None and others and (stored is None or not made_with(folder, study)):
        raise InputError(f"name: {folder} holds files of another study; accepted: a new --name, or an empty folder")
    return stored


def refuse_another_kind(kind: str, name: object, stored: dict[str, object] | None) -> None:
    """Raises:
    InputError: If `stored` are the settings of a search, and a reproduction is asked for, or the other way round.
    """
    held = kind if stored is None else "reproduction" if "paper" in stored else "search"
    if held != kind:
        raise InputError(f"name: {name!r} holds a {held}; accepted: a new --name")


def require_own_folder(study: optuna.Study, results_dir: str, url: str | None) -> None:
    """Raises:
    InputError: If the study is in the storage at `url`, and its results folder has the files of another.
    """
    folder = Path(results_dir) / study.study_name
    if url is not None and not made_with(folder, study):
        raise InputError(f"name: {folder} holds files of another study; accepted: this study's own --results-dir")


def made_with(folder: Path, study: optuna.Study) -> bool:
    """Whether the folder's study.json, if there is one, tells of a study with these settings and images."""
    stored, images = study.user_attrs["settings"], study.user_attrs.get("images")
    try:
        content = json.loads((folder / "study.json").read_bytes())
        written = content["settings"]
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError):
        return False
    may_differ = RUN_SETTINGS | {"objective"} | ({"data_dir"} if images else set())  # named or decided, it is the same
    known, meant = ADDED_LATER | normalised(written), normalised(stored)
    same = all(known.get(field) == value for field, value in meant.items() if field not in may_differ)
    return same and content.get("images") == images


def check_room(settings: StudySettings) -> None:
    """Raises:
    InputError: If the results folder cannot be written, or its disk is all but full.
    """
    folder = settings.folder.absolute()
    for existing in (folder, *folder.parents):
        try:
            existing.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(f"results_dir: {error.strerror}: {str(existing)!r:.200}; accepted: a folder") from None
        break
    if not existing.is_dir():
        raise InputError(f"results_dir: {existing} is a file; accepted: a folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"results_dir: {existing} cannot be written; accepted: a folder that can")
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise InputError(
            f"results_dir: {free // 10**6} MB free at {existing}; accepted: at least {MIN_FREE_BYTES // 10**6} MB"
        )


def check_storage_path(settings: StudySettings) -> None:
    """Raises:
    InputError: If the place given for checkpoints cannot be written.
    """
    place = settings.storage_path
    if place is None:
        return
    accepted = "a folder that all hosts share, or s3://bucket/folder, that can be written"
    if stores.has_key(place):
        raise InputError("storage_path: a URI with a key in it given; accepted: one without; keys: environment or role")
    try:
        stores.require_writable(settings.checkpoints)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(f"storage_path: {place!r} given ({cause}); accepted: {accepted}") from None


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
