"""What every command shares: one line and status 2 for the user's mistake, 130 for Ctrl-C."""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from study import storage
from study.settings import fraction
from trainables.errors import InputError

LOG_LEVELS = ("debug", "info", "warning", "error")


class Fraction(click.ParamType):
    """A number as `0.1` or `8/255`."""

    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else fraction(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a number like 0.1 or 8/255", param, ctx)


class Place(click.ParamType):
    """A path whose `~` the shell has left as it was, as in `--results-dir=~/results`; a URI as it is."""

    name = "path"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return os.path.expanduser(str(value))


def configure_logging(ctx: click.Context, param: click.Parameter, value: str) -> None:
    logging.basicConfig(level=value.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


log_level = click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default="error",
    show_default=True,
    expose_value=False,
    callback=configure_logging,
    help="How much the log on stderr says.",
)


def of_a_study(command: Callable) -> Callable:
    """The argument and options by which a command finds the study that it is about."""
    for add in (
        log_level,
        click.option("--storage", "url", metavar="URL", help="Optuna storage. [default: SQLite in the results]"),
        click.option(
            "--results-dir", type=Place(), default="results", show_default=True, help="Folder of results/<name>/."
        ),
        click.argument("name"),
    ):
        command = add(command)
    return command


def run(command: click.Command, argv: Sequence[str] | None, package: str = "study") -> int:
    """Run `command`, which is the module `package`.`command.name`; returns the exit status."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started us: else the next file would get its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook puts there
            stream.reconfigure(errors="replace")  # a terminal without arrows shows question marks
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `study` left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.flags.optimize > 1:
        return _say("PYTHONOPTIMIZE: 2 given; accepted: 1 or 0, since Ray reads its own docstrings", 2)
    try:
        return command.main(argv, prog_name=f"python -m {package}.{command.name}", standalone_mode=False) or 0
    except click.ClickException as error:
        return _say(error.format_message(), 2)
    except InputError as error:
        return _say(str(error), 2)
    except OSError as error:
        return _say(_os_error(error), 1)
    except (SQLAlchemyError, StorageInternalError) as error:
        return _say(f"storage: {storage.cause(error)}; nothing that was stored is lost, the same command goes on", 1)
    except (KeyboardInterrupt, click.Abort):
        return 130


@contextmanager
def importing() -> Iterator[None]:
    """Ctrl-C inside ends the process: from within what torch imports Python's exception would abort it."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _os_error(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)


def _say(message: str, status: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return status
