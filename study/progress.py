"""What a person sees while a study runs: a live display on a terminal, plain lines elsewhere."""

import os
import sys
import time
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from study.results import GAIN, describe, front_hypervolume, front_of, percent, promised, slowest, wilson

HEARTBEAT = 30.0  # seconds between plain lines when no trial ends


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment."""

    trials: list[FrozenTrial]
    target: int
    elapsed: float  # seconds of this run
    done_before: int  # trials that were finished when this run began

    def count(self, *states: TrialState) -> int:
        return sum(trial.state in states for trial in self.trials)

    @property
    def done(self) -> int:
        return self.count(TrialState.COMPLETE)

    @property
    def stopped(self) -> int:
        return self.count(TrialState.PRUNED)

    @property
    def failed(self) -> int:
        return self.count(TrialState.FAIL)

    @property
    def running(self) -> int:
        return self.count(TrialState.RUNNING)

    @property
    def seconds_left(self) -> float | None:
        """At this run's pace so far; None before its first trial has ended."""
        ended = self.done + self.stopped + self.failed
        if ended == self.done_before:
            return None
        return self.elapsed / (ended - self.done_before) * max(0, self.target - ended)

    def line(self) -> str:
        left, gain = self.seconds_left, promised(self.trials, GAIN)
        volume = f"hypervolume {front_hypervolume(self.trials):.3g} to {slowest(self.trials):.3g} s"
        promise = "" if gain is None else f", another trial promises {percent(gain)} by the sampler's measure"
        return (
            f"{self.done}/{self.target} done, {self.running} running, {self.failed} failed"
            f"{f', {self.stopped} stopped early' if self.stopped else ''}; "
            f"front {len(front_of(self.trials))}, {volume}{promise}; "
            f"elapsed {clock(self.elapsed)}, left {'?' if left is None else 'about ' + clock(left)}"
        )


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def ended_line(trial: FrozenTrial) -> str:
    """One ended trial, e.g. `#3 Fixup 8→128: adversarial 0.420, clean 0.973, 25.1 s`."""
    head = f"#{trial.number} {describe(trial)}".rstrip()
    if trial.state is TrialState.COMPLETE:
        accuracy, seconds = trial.values
        line = f"{head}: adversarial {accuracy:.3f}, clean {trial.user_attrs['clean_accuracy']:.3f}, {seconds:.1f} s"
        _, _, warning = trial.user_attrs.get("reason", "").partition("; ")
        return f"{line}; {warning}" if warning else line
    if trial.state is TrialState.WAITING:
        return f"{head}: {trial.user_attrs['reason'].removeprefix('machine: ')}; handed out again"
    reason = trial.user_attrs.get("reason", "")
    return f"{head}: {reason}" if trial.state is TrialState.PRUNED else f"{head}: failed, {reason}"


def front_table(trials: list[FrozenTrial], title: str = "Pareto front") -> Table:
    """The front, fastest first."""
    table = Table(title=title, title_justify="left")
    for heading in ("trial", "seconds", "adversarial [95 %]", "clean", "n", "epochs", "LR/batch"):
        # On a narrow terminal a trial's name goes on in the next line, and no number is cut.
        name = heading == "trial"
        table.add_column(heading, justify="left" if name else "right", no_wrap=not name)
    for trial in front_of(trials):
        (accuracy, seconds), attrs = trial.values, trial.user_attrs
        low, high = wilson(accuracy, attrs["n_examples"])
        table.add_row(
            f"#{trial.number} {describe(trial)}",
            f"{seconds:.1f}",
            f"{accuracy:.3f} [{low:.2f}, {high:.2f}]",
            f"{attrs['clean_accuracy']:.3f}",
            str(attrs["n_examples"]),
            str(attrs["config"]["epochs"]),
            f"{attrs['config']['lr_batch_ratio']:.1e}",
        )
    return table


class Output(Console):
    """Stdout, whose reader may be gone, as `tee` is after Ctrl-C: the process goes on to write its results."""

    unread = False

    def on_broken_pipe(self) -> None:
        self.unread = self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python has yet to flush


class Progress:
    """Shows snapshots; use as a context manager."""

    def __init__(self, console: Console, target: int, done_before: int) -> None:
        self.console, self.target, self.done_before = console, target, done_before
        self.start = self.last_line = time.monotonic()
        self.live = Live(console=console, refresh_per_second=2) if console.is_interactive else None

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    @property
    def unread(self) -> bool:
        """Whether who read it is gone."""
        return isinstance(self.console, Output) and self.console.unread

    def say(self, message: str) -> None:
        (self.live.console if self.live else self.console).print(message, highlight=False, soft_wrap=True)

    def update(self, trials: list[FrozenTrial], ended: FrozenTrial | None = None) -> None:
        """Show where the study is, and the trial that has just ended."""
        now = time.monotonic()
        snapshot = Snapshot(trials, self.target, now - self.start, self.done_before)
        if ended is not None:
            self.say(ended_line(ended))
        if self.live:
            self.live.update(self._display(snapshot))
        elif ended is not None or now - self.last_line >= HEARTBEAT:
            self.say(snapshot.line())
            self.last_line = now

    def _display(self, snapshot: Snapshot) -> Group:
        bar = ProgressBar(total=snapshot.target, completed=snapshot.done + snapshot.stopped + snapshot.failed, width=60)
        # The table last: of what is higher than the window, its end is not shown.
        return Group(Text(snapshot.line()), bar, front_table(snapshot.trials, "Pareto front so far"))
