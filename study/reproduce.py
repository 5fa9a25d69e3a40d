"""Train what a published paper compares, and say of each claim whether it was reproduced.

PAPER is one of adaptive-batch, lr-batch-ratio, robustnorm and accelat. The same command again continues what was
interrupted, or reports what is finished; more --seeds add to what is there. Results are judged on test images.
"""

import sys
from collections.abc import Sequence
from typing import get_args

import click

from study import cli
from study.folders import check_storage_path, refuse_another_kind, stored_settings
from study.papers import accelat, adaptive_batch, lr_batch_ratio, robustnorm
from study.papers.paper import Paper, trial_configs
from study.papers.settings import PaperName, Protocol, ReproductionSettings, Scale
from study.settings import from_layers
from trainables.errors import InputError, nearest

PAPERS: dict[PaperName, Paper] = {
    "adaptive-batch": adaptive_batch.PAPER,
    "lr-batch-ratio": lr_batch_ratio.PAPER,
    "robustnorm": robustnorm.PAPER,
    "accelat": accelat.PAPER,
}


@click.command(name="reproduce", help=__doc__)
@click.argument("paper")
@click.option(
    "--scale", help="minutes (two CPU cores), hours (one GPU) or paper (the published recipe). [default: minutes]"
)
@click.option("--seeds", type=int, help="Trainings of each configuration, 3 or more; may be raised later. [default: 3]")
@click.option(
    "--protocol", help="whitebox, or published (accelat: images crafted once before training). [default: whitebox]"
)
@click.option("--dataset", help="digits, cifar10, cifar100, svhn or imagefolder. [default: the scale's]")
@click.option(
    "--data-dir",
    type=cli.Place(),
    help="Where the images are, or are downloaded to; imagefolder: has train/ and test/.",
)
@click.option("--depth", type=int, help="Layers of the residual network, 6n+2. [default: the scale's]")
@click.option("--epochs", type=int, help="Length of each training. [default: the scale's]")
@click.option(
    "--eps", type=cli.Fraction(), help="l-inf radius of the attack in pixel units, e.g. 8/255. [default: the scale's]"
)
@click.option("--seed", type=int, help="The first seed. [default: 0]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop after this long; the same command goes on.")
@click.option("--retries", type=int, help="How often a trial goes on after its worker was lost. [default: 3]")
@click.option("--epoch-timeout", type=float, metavar="SECONDS", help="An epoch this long has hung. [default: 3600]")
@click.option("--cpus-per-trial", type=float, help="May be a fraction. [default: 1]")
@click.option("--gpus-per-trial", type=float, help="May be a fraction. [default: 1 where Ray has GPUs, else 0]")
@click.option("--concurrent", type=int, help="Trials at once. [default: as many as fit]")
@click.option("--name", help="Name of the study and of its results folder. [default: reproduce-PAPER]")
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
    settings = resolve({option: value for option, value in given.items() if value is not None})
    check_storage_path(settings)
    with cli.importing():
        from study.reproduction import reproduce  # torch, Ray and plotly take five seconds: a typo is answered before

    return reproduce(settings, PAPERS[settings.paper])


def resolve(given: dict[str, object]) -> ReproductionSettings:
    """The settings, from what was given, what the study was made with, and what the paper's scale starts from.

    Raises:
        InputError: If a value is not accepted, or differs from the study's own.
    """
    name = given["paper"]
    if name not in PAPERS:
        raise InputError(f"paper: {nearest(name, PAPERS)}")
    given = {"name": f"reproduce-{name}"} | given
    stored = stored_settings(layered(given, None), given)
    refuse_another_kind("reproduction", given["name"], stored)
    settings = layered(given, stored)
    if stored is not None and settings.seeds < stored["seeds"]:
        raise InputError(f"seeds: {settings.seeds} given; accepted: at least {stored['seeds']}, which the study has")
    return settings.model_copy(update={"trials": len(trial_configs(PAPERS[name], settings))})


def layered(given: dict[str, object], stored: dict[str, object] | None) -> ReproductionSettings:
    """What was given, over what is stored, over the defaults that follow from scale, protocol and data set."""
    paper = PAPERS[given["paper"]]
    layers = {"scale": "minutes", "protocol": "whitebox"} | (stored or {}) | given
    for field, accepted in [("scale", get_args(Scale)), ("protocol", get_args(Protocol))]:
        if layers[field] not in accepted:
            raise InputError(f"{field}: {nearest(layers[field], accepted)}")
    scale, protocol = layers["scale"], layers["protocol"]
    if protocol not in paper.protocols:
        raise InputError(f"protocol: {protocol!r} given for {given['paper']}; accepted: {', '.join(paper.protocols)}")
    defaults = {"scale": scale, "protocol": protocol} | paper.defaults(scale, given.get("dataset"), protocol)
    return from_layers(given, stored, defaults, ReproductionSettings)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
