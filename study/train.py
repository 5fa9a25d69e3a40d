"""Train the configuration of trial NUMBER of the study NAME once more, and keep the weights.

Without --seed the trial's own seed is used. Accuracies are on validation images, as in the search, whose figures are
printed beside the new ones.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from study import cli, members, storage
from study.settings import StudySettings
from trainables.errors import InputError
from trainables.files import PARTIAL


@click.command(name="train", help=__doc__)
@cli.of_a_study
@click.argument("number", type=int)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of initialisation and batches. [default: the trial's]")
@click.option("--out", type=cli.Place(), help="Weights file. [default: NAME-NUMBER.safetensors]")
@click.option("--data-dir", type=cli.Place(), help="Where the images are now. [default: the study's]")
def command(
    name: str, number: int, seed: int | None, out: str | None, data_dir: str | None, results_dir: str, url: str | None
) -> int:
    study = storage.named(name, results_dir, url)
    trials = study.get_trials(deepcopy=False)
    (member,) = members.members_numbered(trials, [number], "number")
    path = Path(out or f"{name}-{number:04d}.safetensors")
    require_new(path)
    stored = study.user_attrs["settings"] | ({"data_dir": data_dir} if data_dir else {})
    stored |= {"results_dir": results_dir, "storage": url}
    settings = StudySettings(**{field: stored[field] for field in StudySettings.model_fields if field in stored})
    with cli.importing():
        from study import images  # torch takes seconds: a typo is answered before
        from trainables import single
        from trainables.trial import Diverged

    images.load(settings)
    try:
        config = member.config if seed is None else member.with_seed(seed)
        written, last = single.train(
            config,
            settings.data,
            settings.evaluation,
            path,
            click.echo,
            settings.threads,
        )
    except Diverged as error:
        click.echo(f"error: diverged: {error}", err=True)
        return 1
    objective = study.user_attrs.get("objective", "measured")
    click.echo(compared(trials[number].values, objective, last, same_seed=config == member.config))
    if written != path:
        click.echo(f"{path} has appeared meanwhile and is left as it is; the weights are in")
    click.echo(written)
    return 0


def compared(searched: Sequence[float], objective: str, last: dict[str, float], *, same_seed: bool) -> str:
    """What the search found beside what came out now.

    Args:
        searched: The trial's adversarial accuracy and training seconds.
        objective: Which seconds these are.
        last: The new training's last epoch.
        same_seed: Whether it was the trial's.
    """
    accuracy, seconds = searched
    unit = "s" if objective == "measured" else f"s ({objective})"
    equal = " (same seed: on the same kind of device accuracies should be equal)" if same_seed else ""
    return (
        f"search: {seconds:.1f} {unit}, adversarial {accuracy:.3f}; "
        f"now: {last['train_seconds']:.1f} s, {last['adversarial_accuracy']:.3f}{equal}"
    )


def require_new(path: Path) -> None:
    """Raises:
    InputError: If there is such a file, or none can be made there.
    """
    try:
        if path.exists():
            raise InputError(f"out: {path} exists; accepted: a new file")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", suffix=PARTIAL):
            pass  # as the weights will be written, after the training
    except OSError as error:
        raise InputError(
            f"out: {str(path)!r:.200} given ({error.strerror}); accepted: a file in a folder that can be written"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
