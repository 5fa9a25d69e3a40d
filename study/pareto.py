"""Search the Pareto front of adversarial accuracy against training seconds.

SPACE names a file of search_spaces/, or is the path of your own Python file of the same shape.
Without any option this trains ResNet-56 on scikit-learn's digits, some 16 trials in a few minutes.
The same command again continues a study that was interrupted, or reports one that is finished.
"""

import shutil
import sys
from collections.abc import Sequence

import click
import optuna
from rich.console import Console

from study import cli, report, runner, search, spaces, storage
from study.lock import driver_lock
from study.progress import Progress, front_table
from study.results import front_hypervolume, sync_models, write_study_json, write_tables
from study.settings import StudySettings, from_layers
from study.spaces import Space
from trainables import data
from trainables.errors import InputError

MIN_FREE_BYTES = 100_000_000  # a few checkpoints and logs
SECRET_OR_LOCAL = {"storage", "address", "results_dir"}  # not stored with the study


@click.command(name="pareto", help=__doc__)
@click.argument("space", required=False)
@click.option("--name", help="Name of the study and of its results folder. [default: the space's name]")
@click.option("--trials", type=int, help="Finished trials in all; may be raised later. [quickstart: 16]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop after this long; the same command goes on.")
@click.option("--dataset", help="digits, cifar10, cifar100, svhn or imagefolder. [quickstart: digits]")
@click.option("--data-dir", help="Where the images are, or are downloaded to; imagefolder: has train/ and test/.")
@click.option("--depth", type=int, help="Layers of the residual network, 6n+2. [quickstart: 56]")
@click.option(
    "--eps", type=cli.Fraction(), help="l-inf radius of the attack in pixel units, e.g. 8/255. [quickstart: 0.1]"
)
@click.option("--attack-steps", type=int, help="PGD steps of the evaluation. [quickstart: 10]")
@click.option("--eval-examples", type=int, help="Validation images attacked at a trial's end. [quickstart: 300]")
@click.option("--sampler", help="tpe, nsga2, gp or random. [default: tpe]")
@click.option("--seed", type=int, help="Of the sampler and, plus its number, of each trial. [default: 0]")
@click.option("--retries", type=int, help="How often a trial goes on after its worker was lost. [default: 3]")
@click.option("--cpus-per-trial", type=float, help="May be a fraction. [default: 1]")
@click.option("--gpus-per-trial", type=float, help="May be a fraction. [default: 1 where Ray has GPUs, else 0]")
@click.option("--concurrent", type=int, help="Trials at once. [default: as many as fit]")
@click.option("--storage", metavar="URL", help="Optuna storage, e.g. postgresql://… [default: SQLite in the results]")
@click.option("--results-dir", help="Folder of results/<name>/. [default: results]")
@click.option("--address", help="A running Ray cluster, e.g. auto or ray-head:6379. [default: Ray on this machine]")
@cli.log_level
def command(**given: object) -> int:
    given = {option: value for option, value in given.items() if value is not None}
    settings, space = resolve(given)
    check_room(settings)
    dataset = data.load(settings.dataset, settings.data.data_dir)
    spaces.try_out(space, settings, len(dataset.train))
    settings.folder.mkdir(parents=True, exist_ok=True)
    with driver_lock(settings.folder):
        return conduct(settings, space)


def resolve(given: dict[str, object]) -> tuple[StudySettings, Space]:
    """The settings, from what was given, what the study was made with, and the space; writes nothing."""
    space = spaces.load(str(given.get("space", "quickstart")))
    given = {"name": space.path.stem} | given
    stored = stored_settings(from_layers(given, None, space.defaults))
    if stored is not None and "space" not in given:
        space = spaces.load(str(stored["space"]))
    return from_layers(given, stored, space.defaults), space


def stored_settings(settings: StudySettings) -> dict[str, object] | None:
    """What the study of this name was made with; None where there is no such study yet.

    Raises:
        InputError: If the results folder holds something else.
    """
    folder = settings.folder
    in_folder = folder.is_dir() and any(folder.iterdir())
    if settings.storage is None and not (folder / "study.db").exists():
        if in_folder:
            raise InputError(f"name: {folder} holds files but no study.db; accepted: a new --name, or an empty folder")
        return None
    database = storage.from_url(settings.storage_url)
    try:
        study = optuna.load_study(storage=database, study_name=settings.name)
    except KeyError:
        return None
    return study.user_attrs.get("settings")


def check_room(settings: StudySettings) -> None:
    """Raises:
    InputError: If the results folder cannot be written, or its disk is all but full.
    """
    existing = next(path for path in [settings.folder.absolute(), *settings.folder.absolute().parents] if path.exists())
    if not existing.is_dir():
        raise InputError(f"results_dir: {existing} is a file; accepted: a folder")
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise InputError(
            f"results_dir: {free // 10**6} MB free at {existing}; accepted: at least {MIN_FREE_BYTES // 10**6} MB"
        )


def conduct(settings: StudySettings, space: Space) -> int:
    """Make or continue the study, run what is missing, write the results; returns the exit status."""
    database = storage.from_url(settings.storage_url)
    study = storage.open_study(database, settings.name)
    study.sampler = search.make_sampler(settings, len(study.get_trials(deepcopy=False)))
    search.requeue_interrupted(study)
    search.enqueue_baselines(study, space)
    study.set_user_attr("settings", settings.model_dump(mode="json", exclude=SECRET_OR_LOCAL))
    console = Console(file=sys.stdout)
    ending = "finished"
    done_before = search.n_finished(study)
    if done_before < settings.trials:
        console.print(f"Study {settings.name}: {settings.trials} trials, results in {settings.folder}", soft_wrap=True)
        with runner.cluster(settings) as resources:
            write_study_json(settings, settings.folder, resources)
            with Progress(console, settings.trials, done_before) as progress:
                ending = runner.run(study, space, settings, resources, progress)
    finish(study, settings, console, ending)
    return 130 if ending == "interrupted" else 0


def finish(study: optuna.Study, settings: StudySettings, console: Console, ending: str) -> None:
    """Write every result from the storage, and say where it is and what to do next."""
    trials = study.get_trials(deepcopy=False)
    sync_models(trials, settings.folder)
    write_tables(study, settings.folder)
    report.write(study, settings.folder)
    console.print(front_table(trials))
    console.print(f"hypervolume {front_hypervolume(trials):.4g} accuracy x seconds", highlight=False)
    for name in ("report.html", "front.png", "front.csv", "trials.csv", "study.json", "models/"):
        console.print(f"  {settings.folder / name}", highlight=False, soft_wrap=True)
    again = f"python -m study.pareto {settings.space} --name {settings.name}"
    n = search.n_finished(study)
    if ending == "finished":
        message = f"All {n} trials have ended. More: {again} --trials {n * 2}"
    else:
        message = f"Stopped ({ending}) after {n} of {settings.trials} trials. To go on: {again}"
    console.print(message, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
