"""Open the study NAME in Optuna's dashboard and TensorBoard, on this machine only, until Ctrl-C.

Ray's own dashboard is named as well while a study runs. Works on a study that is running.
"""

import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import click
import optuna

from study import cli, storage
from study.lock import may_run

HOST = "127.0.0.1"
ANSWER_SECONDS = 2


@contextmanager
def optuna_dashboard(study: optuna.Study) -> Iterator[str]:
    """Optuna's dashboard on the study's storage; yields its address.

    It runs in this process, not by its own command, whose arguments would show the storage's password to everybody
    on the machine.
    """
    from optuna_dashboard import wsgi
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *words: object) -> None:
            """Nothing: a line per request would bury the addresses."""

    server = make_server(HOST, 0, wsgi(study._storage), threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.port}/dashboard/studies/{study._study_id}"
    finally:
        server.shutdown()
        server.server_close()


def tensorboard(logs: Path) -> str:
    """TensorBoard on Tune's logs, in a thread of this process; returns its address.

    The process that reads its logs ends with this one, however this one ends.
    """
    import tensorboard_data_server
    from tensorboard.program import TensorBoard

    fast = "true" if tensorboard_data_server.server_binary() else "false"  # said here, or it says so on stderr
    board = TensorBoard()
    board.configure(["tensorboard", "--logdir", str(logs), "--host", HOST, "--port", "0", "--load_fast", fast])
    return board.launch()


def answers(url: str) -> bool:
    """Whether somebody listens there."""
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname, place.port), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


@click.command(name="dashboard", help=__doc__)
@cli.of_a_study
def command(name: str, results_dir: str, url: str | None) -> int:
    study = storage.named(name, results_dir, url)
    logs, ray = Path(results_dir) / name / "tune", study.user_attrs.get("ray", {})
    with ExitStack() as stack:
        say("Optuna", stack.enter_context(optuna_dashboard(study)))
        say("TensorBoard", tensorboard(logs) if logs.exists() else f"no logs in {logs}")
        running = "dashboard" in ray and may_run(logs.parent) and answers(ray["dashboard"])
        say("Ray", ray["dashboard"] if running else "no cluster of this study answers")
        if running and "metrics" in ray:
            say("metrics", ray["metrics"])
        click.echo("Ctrl-C stops them.")
        while True:
            time.sleep(3600)


def say(what: str, where: str) -> None:
    click.echo(f"{what:<12} {where}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
