"""A study from its settings to its results: storage, run, tables, pictures."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path

import click
import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from rich.console import Console

from study import calibration, images, page, runner, search, spaces, storage
from study.lock import driver_lock, require_no_driver
from study.progress import Output, Progress, front_table
from study.results import (
    front_hypervolume,
    front_of,
    is_complete,
    slowest,
    sync_models,
    weights_name,
    write_study_json,
    write_tables,
)
from study.sampling import Draw
from study.settings import StudySettings
from study.sole_writer import SoleWriter
from study.spaces import Space
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.files import remove_partial, write_whole
from trainables.stores import Unreachable

# Not stored with the study: secrets, places of this machine, and how long one run may last.
NOT_STORED = {"storage", "address", "results_dir", "timeout"}
MAX_SPACE_TEXT = 60_000  # bytes of JSON; some databases hold 65,535 in a text
N_REASONS = 3  # that are named where no trial completed
PASSWORD_SEEN = (
    "the URL holds a password, which whoever lists this machine's processes, or a cluster's jobs, can read; "
    "safer: a URL without, and PGPASSWORD or ~/.pgpass"
)
PLAIN_WIDTH = 120  # columns where stdout is no terminal


def conduct(settings: StudySettings, space: Space) -> int:
    """Make or continue the study, run what is missing, write the results; returns the exit status.

    Raises:
        InputError: If the images or the space cannot be used, or another driver runs the study; nothing is
            written then.
    """
    dataset, seen = images.load(settings)
    space = spaces.try_out(space, settings, len(dataset.train), drawn(settings))
    if settings.sampler == "front":
        spaces.configure(space, settings, Draw(np.random.default_rng(settings.seed)))  # as it will be drawn from

    def prepare() -> optuna.Study:
        if settings.eval_examples > (there := len(dataset.validation)):
            asked = f"eval_examples: {settings.eval_examples} are more than the validation set has"
            click.echo(f"{asked}: all {there} count", err=True)
        return images.kept(seen, partial(open_study, settings, space, len(dataset.train)))

    return carry_out(
        settings,
        prepare,
        partial(spaces.configure, space, settings),
        finish,
    )


def drawn(settings: StudySettings) -> dict[str, BaseDistribution]:
    """What the study's trials were drawn from, where more are asked for."""
    study = storage.existing(settings.storage_url, settings.name)
    if study is None or storage.n_finished(study) >= settings.trials:
        return {}
    return {
        field: distribution
        for trial in study.get_trials(deepcopy=False)
        for field, distribution in trial.distributions.items()
    }


def carry_out(
    settings: StudySettings,
    prepare: Callable[[], optuna.Study],
    configure: Callable[[optuna.Trial], TrialConfig],
    finish: Callable[[optuna.Study, StudySettings, Console, str], None],
) -> int:
    """What every kind of study has in common, under the lock of its folder; returns the exit status.

    That is 130 after Ctrl-C, and 1 where all trials have ended and none completed.

    Args:
        settings: Of the study.
        prepare: Opens the study, with all that is to be handed out first.
        configure: The configuration of a trial that has none yet.
        finish: Writes the results; called with the study, its settings, the console and how the run ended.

    Raises:
        InputError: If there is no such cluster, or another driver runs the study.
    """
    console = stdout()
    if settings.storage and storage.has_password(settings.storage):
        print(f"storage: {PASSWORD_SEEN}", file=sys.stderr)
    with ExitStack() as stack:
        begun = settings.folder.exists()
        if begun:
            stack.enter_context(driver_lock(settings.folder))
        done = storage.count_finished(settings.storage_url, settings.name)
        resources = stack.enter_context(runner.cluster(settings)) if done < settings.trials else None
        if settings.storage and (existing := storage.existing(settings.storage_url, settings.name)):
            require_no_driver(existing)
        if not begun:
            make_folder(settings)
            stack.enter_context(driver_lock(settings.folder))
        remove_partial(settings.folder)
        study = prepare()
        ending = "finished"
        if resources is not None:
            message = f"Study {settings.name}: {settings.trials} trials, results in {settings.folder}"
            console.print(message, highlight=False, soft_wrap=True)
            objective = runner.resolve_objective(study, settings, resources)
            write_study_json(settings, settings.folder, resources, objective, study.user_attrs.get("images"))
            with Progress(console, settings.trials, done) as progress:
                study.set_user_attr("ending", "")
                ending = runner.run(study, configure, settings, resources, progress, objective)
                study.set_user_attr("ending", ending)
        finish(study, settings, console, ending)
        nothing = ending == "finished" and not any(map(is_complete, study.get_trials(deepcopy=False)))
    return 130 if ending == "interrupted" else int(nothing)


def stdout() -> Output:
    """Live on a terminal alone, whatever FORCE_COLOR says. Without markup: labels and paths may have brackets."""
    if sys.stdout.isatty():
        return Output(file=sys.stdout, markup=False)
    return Output(file=sys.stdout, markup=False, width=PLAIN_WIDTH, force_interactive=False)


def make_folder(settings: StudySettings) -> None:
    """Raises:
    InputError: If somebody else has made it since it was looked for: Ray takes seconds to start.
    """
    try:
        settings.folder.mkdir(parents=True)
    except FileExistsError:
        raise InputError(
            f"name: {settings.name!r} given, which another process has begun meanwhile; accepted: another --name, or "
            "the same command again, to go on with it"
        ) from None


def open_study(settings: StudySettings, space: Space, n_examples: int) -> optuna.Study:
    """The study as it stands, trials that a dead driver left behind handed out again."""
    study = storage.open_study(SoleWriter(storage.from_url(settings.storage_url)), settings.name)
    n_existing, configure = len(study.get_trials(deepcopy=False)), partial(spaces.configure, space, settings)
    make_sampler = partial(search.make_sampler, settings, n_existing, configure, n_examples)
    n_ended = storage.n_finished(study)
    if settings.max_trial_seconds is not None and n_ended < settings.trials:
        make_sampler().rehearse(study)
    study.sampler = make_sampler()
    asked = {"trials": max(settings.trials, n_ended)}  # where fewer are asked for than have ended, none is run
    study.set_user_attr("settings", settings.model_dump(mode="json", exclude=NOT_STORED) | asked)
    if n_ended < settings.trials:  # else nothing is drawn from the space
        keep_space(study, space, settings.folder)
    search.requeue_interrupted(study)
    search.enqueue_baselines(study, space)
    return study


def keep_space(study: optuna.Study, space: Space, folder: Path) -> None:
    """The space's file with the study, and as space.py in its folder; earlier ones as space-1.py, space-2.py and so on.

    Says on stderr where it is another than the study has. A text too long for the storage is there by its digest alone.
    """
    file, known = folder / "space.py", study.user_attrs.get("space_file")
    text = space.source.decode(errors="surrogateescape")  # whatever its encoding, the same bytes come back
    kept = text if len(json.dumps(text)) <= MAX_SPACE_TEXT else None
    now = {"sha256": sha256(space.source).hexdigest(), "text": kept}
    stored = known["text"].encode(errors="surrogateescape") if known and known["text"] else space.source
    held = file.read_bytes() if file.exists() else space.source  # another than stored if too long, or edited there
    earlier = []
    for source in dict.fromkeys([stored, held]):
        if source != space.source:
            earlier.append(next(path for n in count(1) if not (path := folder / f"space-{n}.py").exists()))
            write_whole(earlier[-1], source)
    write_whole(file, space.source)
    if known not in (None, now):
        where = ", ".join([f"{file} has the new one", *(f"{path.name} the earlier" for path in earlier)])
        click.echo(
            f"space: {space.path} has changed since the study last ran: its trials so far were drawn from another; "
            f"{where}",
            err=True,
        )
    study.set_user_attr("space_file", now)


def finish(study: optuna.Study, settings: StudySettings, console: Console, ending: str) -> None:
    """Write every result from the storage, and say where it is and what to do next."""
    trials, models = study.get_trials(deepcopy=False), settings.folder / "models"
    try:
        sync_models(trials, settings.folder, settings.checkpoints)
    except Unreachable as error:
        console.print(f"Weights of the front are missing, the same command fetches them: {error}", soft_wrap=True)
    else:
        lost = [trial.number for trial in front_of(trials) if not (models / weights_name(trial.number)).exists()]
        if lost:  # of a study whose results lay elsewhere, say
            numbers = ", ".join(f"#{number}" for number in lost)
            console.print(f"Weights of {numbers} are not in {models}; study.train makes them anew", soft_wrap=True)
    write_tables(study, settings.folder)
    page.write(study, settings.folder)
    console.print(front_table(trials))
    volume = f"hypervolume {front_hypervolume(trials):.4g} accuracy x seconds, to {slowest(trials):.3g} s"
    console.print(volume, highlight=False)
    if timing := calibration.timing_text(study):
        console.print(timing, highlight=False, soft_wrap=True)
    files = ("report.html", "front.png", "front.csv", "trials.csv", "study.json", "space.py", "models/")
    again = command_line(settings, "pareto", settings.space, "--name", settings.name)
    more = f"More: {again} --trials {storage.n_finished(study) * 2}"
    written = [path for name in files if (path := settings.folder / name).exists()]  # some only when trials are run
    say_end(console, study, settings, written, ending, again, more)


def command_line(settings: StudySettings, *words: str) -> str:
    """The command `words` on the study with these settings; what is not named is stored with it.

    `recommend` reads alone and runs on no cluster.
    """
    given = ["python", "-m", f"study.{words[0]}", *words[1:]]
    if settings.address and words[0] != "recommend":
        given += ["--address", settings.address]
    return shlex.join(given) + storage.location(settings.results_dir, settings.storage)


def say_end(
    console: Console,
    study: optuna.Study,
    settings: StudySettings,
    files: Sequence[Path],
    ending: str,
    again: str,
    then: str,
    noun: str = "trials",
) -> None:
    """The files that were written, how many trials have ended, why if none completed, and the command to run next."""
    n, lines = storage.n_finished(study), [f"  {file}" for file in files]
    trials = study.get_trials(deepcopy=False)
    if n and not any(map(is_complete, trials)):
        lines.append(f"No {noun.removesuffix('s')} completed: {frequent_reasons(trials)}")
    if ending == "finished":
        message = f"All {n} {noun} have ended. {then}"
    elif ending == storage.TOO_LITTLE_GAIN:
        message = f"Ended after {n} {noun}: another promised too little. To go on all the same: {again} --until-gain 0"
    else:
        message = f"Stopped ({ending}) after {n} of {settings.trials} {noun}. To go on: {again}"
    for line in [*lines, message]:
        console.print(line, highlight=False, soft_wrap=True)


def frequent_reasons(trials: Sequence[FrozenTrial]) -> str:
    """Why trials were stopped or failed, e.g. `3 failed (diverged: loss nan); 1 stopped early (too slow)`."""
    reasons = [f"{n} {state} ({reason})" for n, state, reason in page.reasons(trials)]
    rest = len(reasons) - N_REASONS
    return "; ".join(reasons[:N_REASONS] + ([f"{rest} more reasons in trials.csv"] if rest > 0 else []))
