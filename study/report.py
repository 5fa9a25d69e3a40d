"""Write report.html, front.png and front.svg of the study NAME, from its storage.

The page opens offline, and on a study that is still running.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import optuna

from study import cli, storage
from study.folders import require_own_folder, require_writable
from trainables.errors import InputError


@click.command(name="report", help=__doc__)
@cli.of_a_study
def command(name: str, results_dir: str, url: str | None) -> int:
    study = storage.named(name, results_dir, url)
    require_writable(Path(results_dir) / name)
    with cli.importing():
        from study import page  # plotly and matplotlib take seconds: a typo is answered before

    require_front(study)
    require_own_folder(study, results_dir, url)
    folder = Path(results_dir) / name
    folder.mkdir(parents=True, exist_ok=True)
    page.write(study, folder)
    if storage.is_unfinished(study):
        asked = study.user_attrs["settings"]["trials"]
        click.echo(f"unfinished: {storage.n_finished(study)} of {asked} trials have ended")
    for file in ("report.html", "front.png", "front.svg"):
        click.echo(folder / file)
    return 0


def require_front(study: optuna.Study) -> None:
    """Raises:
    InputError: If no trial is complete; says what became of them.
    """
    from study.results import front_of

    trials = study.get_trials(deepcopy=False)
    if front_of(trials):
        return
    states = Counter(trial.state.name for trial in trials)
    became = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none yet"
    reason = next((trial.user_attrs["reason"] for trial in trials if trial.user_attrs.get("reason")), "")
    raise InputError(
        f"name: {study.study_name!r} has no front (trials: {became}{'; ' + reason if reason else ''}); "
        "accepted: a study with a complete trial"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
