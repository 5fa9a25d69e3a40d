"""What must hold of a finished study whatever was killed, from its storage and files alone."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import TrialState

from study.front import non_dominated


@dataclass(frozen=True)
class Account:
    """Of one study."""

    trials: int
    complete: int
    failed: int
    interruptions: int  # attempts at trials beyond each trial's first
    epochs_redone: int  # epochs begun beyond each epoch's first time
    most_redone_per_interruption: float


def open_study(folder: Path) -> optuna.Study:
    return optuna.load_study(storage=f"sqlite:///{folder / 'study.db'}", study_name=folder.name)


def check(folder: Path, n_trials: int, epochs: int, log: Path) -> Account:
    """Raises:
    AssertionError: If a trial was lost, doubled or faked, or a file does not follow from the storage.
    """
    trials = open_study(folder).trials
    states = Counter(trial.state for trial in trials)
    assert not states[TrialState.RUNNING], "a record is RUNNING without a process"
    finished = [trial for trial in trials if trial.state.is_finished()]
    assert len(finished) == n_trials, f"{len(finished)} finished of {n_trials}"
    assert [trial.number for trial in trials] == list(range(len(trials)))
    for trial in finished:
        check_trial(trial, epochs)
    labels = Counter(trial.user_attrs.get("label") for trial in trials)
    assert labels["published"] == 1, "a starting configuration was enqueued twice or lost"
    check_files(folder, trials)
    return account(trials, read_log(log))


def check_trial(trial: optuna.trial.FrozenTrial, epochs: int) -> None:
    attrs = trial.user_attrs
    assert attrs["reason"], f"trial {trial.number} ended without a reason"
    curve = attrs["curve"]
    seconds = [row["train_seconds"] for row in curve]
    assert seconds == sorted(set(seconds)), f"trial {trial.number}: seconds do not grow: {seconds}"
    if trial.state is TrialState.COMPLETE:
        assert [row["epoch"] for row in curve] == list(range(1, epochs + 1)), f"trial {trial.number}: {curve}"
        assert trial.values == [curve[-1]["adversarial_accuracy"], curve[-1]["train_seconds"]]
    else:
        assert trial.values is None and attrs["reason"] != "finished"


def check_files(folder: Path, trials: list[optuna.trial.FrozenTrial]) -> None:
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    mask = non_dominated([trial.values for trial in complete])
    front = sorted(trial.number for trial, keep in zip(complete, mask, strict=True) if keep)
    table = pd.read_csv(folder / "trials.csv")
    assert list(table.number) == [trial.number for trial in trials]
    assert sorted(pd.read_csv(folder / "front.csv").number) == front
    assert sorted(int(path.stem) for path in (folder / "models").iterdir()) == front
    assert list((folder / "tune" / "checkpoints").iterdir()) == [], "a checkpoint is left of a finished trial"
    assert not list(folder.glob("**/*.partial")), "a half-written file is left"


def read_log(log: Path) -> list[tuple[int, str, int]]:
    rows = [line.split() for line in log.read_text().splitlines()]
    return [(int(number), event, int(epoch)) for number, event, epoch in rows]


def account(trials: list[optuna.trial.FrozenTrial], log: list[tuple[int, str, int]]) -> Account:
    begun = Counter((number, epoch) for number, event, epoch in log if event == "epoch")
    opened = Counter(number for number, event, _ in log if event == "open")
    redone = Counter()
    for (number, _), times in begun.items():
        redone[number] += times - 1
    interruptions = {number: times - 1 for number, times in opened.items()}
    for number, times in redone.items():
        assert times <= interruptions[number], (
            f"trial {number} redid {times} epochs in {interruptions[number]} restarts"
        )
    states = Counter(trial.state for trial in trials)
    return Account(
        trials=len(trials),
        complete=states[TrialState.COMPLETE],
        failed=states[TrialState.FAIL],
        interruptions=sum(interruptions.values()),
        epochs_redone=sum(redone.values()),
        most_redone_per_interruption=max(
            (redone[number] / times for number, times in interruptions.items() if times), default=0.0
        ),
    )
