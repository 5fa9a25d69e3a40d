"""Train the front of the study NAME again with fresh seeds, and judge it on test and under strong attacks.

Members are the front and the published configurations. Trainings are timed alone: one at a time on CPUs, one on each
GPU. The same command again goes on where it was interrupted; more --seeds add to what is there.
"""

import sys
from collections.abc import Sequence

import click
import optuna

from study import cli, members, storage
from study.folders import check_room, check_storage_path, require_own_folder
from study.members import ConfirmSettings, Member
from study.settings import from_layers
from trainables.errors import InputError

INHERITED = (
    *("dataset", "data_dir", "depth", "attack_norm", "eps", "attack_steps"),
    *("seed", "cpus_per_trial", "storage_path"),
)


class Numbers(click.ParamType):
    """Trials as `3,7,12`."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            return value if isinstance(value, list) else [int(number) for number in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of trial numbers like 3,7,12", param, ctx)


@click.command(name="confirm", help=__doc__)
@click.argument("name")
@click.option("--seeds", type=int, help="Trainings of each member; may be raised later. [default: 5]")
@click.option("--members", "numbers", type=Numbers(), help="Trials, e.g. 3,7. [default: front and published ones]")
@click.option("--attack-examples", type=int, help="Test images for AutoAttack and the gates. [default: 50]")
@click.option("--eval-examples", type=int, help="Test images for all other accuracies. [default: 10000, or all]")
@click.option("--data-dir", type=cli.Place(), help="Where the images are now. [default: the search's]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop after this long; the same command goes on.")
@click.option("--retries", type=int, help="How often a training goes on after its worker was lost. [default: 3]")
@click.option("--cpus-per-trial", type=float, help="Threads of each training. [default: the search's]")
@click.option("--gpus-per-trial", type=float, help="0 or whole GPUs. [default: 1 where Ray has GPUs, else 0]")
@click.option("--concurrent", type=int, help="Trainings at once. [default: 1 on CPUs, else as many as GPUs]")
@click.option(
    "--results-dir", type=cli.Place(), default="results", show_default=True, help="Folder of results/<name>/."
)
@click.option("--storage", "url", metavar="URL", help="The search's Optuna storage. [default: SQLite in the results]")
@click.option(
    "--storage-path", type=cli.Place(), metavar="PLACE", help="Checkpoints on a cluster, as for study.pareto."
)
@click.option("--address", help="A running Ray cluster, e.g. auto or ray-head:6379. [default: Ray on this machine]")
@cli.log_level
def command(name: str, numbers: list[int] | None, results_dir: str, url: str | None, **given: object) -> int:
    searched = storage.named(name, results_dir, url)
    require_own_folder(searched, results_dir, url)
    given = {option: value for option, value in given.items() if value is not None}
    given |= {"results_dir": results_dir} | ({"storage": url} if url else {})
    settings = resolve(searched, given)
    trials = searched.get_trials(deepcopy=False)
    chosen = members.members_numbered(trials, numbers) if numbers else members.default_members(trials)
    check_room(settings)
    check_storage_path(settings)
    return run(settings, searched, chosen)


def resolve(searched: optuna.Study, given: dict[str, object]) -> ConfirmSettings:
    """The settings, from what was given, what the confirmation was made with, and the search's own.

    Raises:
        InputError: If a value is not accepted, or differs from the confirmation's own.
    """
    name, search = searched.study_name, searched.user_attrs["settings"]
    if not search["eps"]:
        raise InputError(f"name: {name!r} attacks within eps 0; accepted: a study with an attack")
    defaults = {field: search[field] for field in INHERITED if field in search}
    defaults |= {"search": name, "name": f"{name}-confirm", "curve_examples": max(1, search["eval_examples"] // 4)}
    first = from_layers(given, None, defaults, ConfirmSettings)
    study = storage.existing(first.storage_url, first.name)
    stored = storage.settings_of(study, given)
    if stored is not None and stored.get("search") != name:
        raise InputError(f"name: {first.name!r} is a study of its own there; accepted: a search of another name")
    return from_layers(given, stored, defaults, ConfirmSettings)


def run(settings: ConfirmSettings, searched: optuna.Study, chosen: Sequence[Member]) -> int:
    with cli.importing():
        from study import confirmation  # torch, Ray and scipy take seconds: a typo is answered before

    confirmation.require_same_search(settings, searched)
    settings = settings.model_copy(update={"trials": confirmation.n_trials(settings, chosen)})
    return confirmation.confirm(settings, searched, chosen)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
