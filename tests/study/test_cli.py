import os
import signal
import subprocess
import sys
from functools import partial

import click
import pytest
from sqlalchemy.exc import OperationalError

from study import cli
from trainables.errors import InputError


def command_that(action):
    return click.Command("demo", callback=action, params=[click.Option(["--eps"], type=cli.Fraction())])


def raising(error):
    def action(**given):
        raise error

    return command_that(action)


@pytest.mark.parametrize(
    "error,status,line",
    [
        (InputError("depth: 55 given;\naccepted: 56"), 2, "error: depth: 55 given; accepted: 56\n"),
        (click.UsageError("no such option"), 2, "error: no such option\n"),
        (OSError(28, "No space left on device", "study.db"), 1, "error: No space left on device: study.db\n"),
        (
            OperationalError("INSERT", {"password": "secret"}, Exception("database is locked")),
            1,
            "error: storage: database is locked; nothing that was stored is lost, the same command goes on\n",
        ),
        (KeyboardInterrupt(), 130, "\n"),  # click ends the line that holds ^C
    ],
)
def test_what_goes_wrong_is_one_line_and_a_status(error, status, line, capsys):
    assert cli.run(raising(error), []) == status
    assert capsys.readouterr().err == line


def test_an_error_of_the_programs_own_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError()), [])


def test_a_command_returns_its_status():
    assert cli.run(command_that(lambda eps: 130), []) == 130
    assert cli.run(command_that(lambda eps: None), []) == 0


def test_a_stream_that_was_closed_is_opened_again(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.run(command_that(lambda eps: sys.stdout.isatty() or print("lost")), []) == 0
    sys.stdout.close()


@pytest.mark.parametrize(
    "options, environment, line",
    [
        (["-OO"], {}, "error: PYTHONOPTIMIZE: 2 given; accepted: "),
        ([], {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, "error: paper: 'nope'; "),
    ],
)
def test_what_the_environment_says_to_others_ends_no_command_in_a_traceback(options, environment, line):
    command = [sys.executable, *options, "-m", "study.reproduce", "nope"]
    done = subprocess.run(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_ctrl_c_while_a_command_still_imports_shows_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "study.pareto", "--help"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores Ctrl-C
    )
    imported = next(line for line in process.stderr if line.endswith(" click\n"))
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in imported + process.stderr.read()
    assert process.wait(30) == -signal.SIGINT  # 130, says a shell


def test_ctrl_c_is_answered_by_a_command_that_runs():
    found, before = [], signal.signal(signal.SIGINT, signal.SIG_DFL)  # as while it is imported
    try:
        cli.run(command_that(lambda eps: found.append(signal.getsignal(signal.SIGINT))), [])
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [signal.default_int_handler]


def test_ctrl_c_ends_the_process_while_torch_is_imported():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(ImportError), cli.importing():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            raise ImportError
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_numbers_may_be_fractions():
    seen = []
    assert cli.run(command_that(lambda eps: seen.append(eps)), ["--eps", "8/255"]) == 0
    assert seen == [8 / 255]


def test_importing_a_command_configures_no_logging():
    code = "import logging, sys, study.pareto; sys.exit(bool(logging.getLogger().handlers))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
