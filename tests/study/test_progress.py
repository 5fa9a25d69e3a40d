import io

import optuna
from optuna.trial import TrialState
from rich.console import Console

from study.progress import Progress, Snapshot, clock, ended_line, front_table
from study.storage import DIRECTIONS
from tests.study.trials import add


def trials(*states):
    study = optuna.create_study(directions=DIRECTIONS)
    for i, state in enumerate(states):
        add(study, 0.1 * (i + 1), 10.0 + i, label=f"t{i}", state=state)
    return study.trials


STATES = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]


def test_a_snapshot_counts_trials_by_state():
    snapshot = Snapshot(trials(*STATES), 10, 60.0, 0)
    assert (snapshot.done, snapshot.failed, snapshot.running) == (2, 1, 1)
    assert snapshot.line().startswith("2/10 done, 1 running, 1 failed; front 2, hypervolume 0.1 to 11 s; ")


def test_a_line_says_what_another_trial_would_add_where_the_sampler_knows():
    assert "promises" not in Snapshot(trials(*STATES), 10, 60.0, 0).line()
    study = optuna.create_study(directions=DIRECTIONS)
    for gain, text in ((25.914, "2,590"), (0.125, "12.5"), (0.000125, "0.0125")):
        study.ask().set_user_attr("expected_gain", gain)
        line = Snapshot(study.trials, 10, 60.0, 0).line()
        assert f", another trial promises {text} % by the sampler's measure; elapsed" in line


def test_the_time_left_follows_this_runs_pace():
    assert Snapshot(trials(*STATES), 10, 60.0, 0).seconds_left == 60 / 3 * 7
    assert Snapshot(trials(*STATES), 10, 60.0, 2).seconds_left == 60 * 7
    assert Snapshot(trials(*STATES), 10, 60.0, 3).seconds_left is None


def test_where_stdout_is_no_terminal_there_are_plain_lines():
    out = io.StringIO()
    with Progress(Console(file=out, width=120), 10, 0) as progress:
        rows = trials(*STATES)
        progress.update(rows)
        assert out.getvalue() == ""
        progress.update(rows, ended=rows[0])
    lines = out.getvalue().splitlines()
    assert lines[0] == "#0 t0: adversarial 0.100, clean 0.900, 10.0 s" and lines[1].startswith("2/10 done")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_that_cannot_go_back_has_plain_lines_too(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert Progress(Console(file=io.StringIO(), force_terminal=True), 10, 0).live is None


def test_on_a_terminal_the_front_stays_in_view():
    out = io.StringIO()
    with Progress(Console(file=out, width=120, force_terminal=True, force_interactive=True), 10, 0) as progress:
        progress.update(trials(*STATES))
    assert "Pareto front so far" in out.getvalue() and "2/10 done" in out.getvalue()


def test_a_front_higher_than_the_window_does_not_hide_how_far_the_study_is():
    out = io.StringIO()
    study = optuna.create_study(directions=DIRECTIONS)
    for i in range(30):
        add(study, 0.03 * (i + 1), 10.0 + i)
    rows = study.trials
    with Progress(
        Console(file=out, width=120, height=24, force_terminal=True, force_interactive=True), 40, 0
    ) as progress:
        progress.update(rows)
        progress.live.refresh()
        shown = out.getvalue()
    assert "30/40 done" in shown and "#29" not in shown


def test_an_ended_trial_is_one_line_whatever_its_end():
    rows = trials(*STATES)
    assert ended_line(rows[2]) == "#2 t2: failed, finished"
    rows[4].user_attrs["reason"] = "machine: hung, no epoch ended within 15 s"
    assert ended_line(rows[4]) == "#4 t4: hung, no epoch ended within 15 s; handed out again"


def test_the_table_shows_the_interval_of_each_accuracy():
    out = io.StringIO()
    Console(file=out, width=120).print(front_table(trials(*STATES)))
    assert "0.200 [0.13, 0.29]" in out.getvalue()


def test_a_terminal_of_eighty_columns_folds_names_and_cuts_nothing():
    found = trials(*STATES)
    for trial in found:
        trial.user_attrs["label"] = "robustnorm 16→128 pgd"
    out = io.StringIO()
    Console(file=out, width=80).print(front_table(found))
    assert "0.200 [0.13, 0.29]" in out.getvalue() and "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_durations_read_as_clocks():
    assert [clock(5), clock(65), clock(3725)] == ["0:05", "1:05", "1:02:05"]
