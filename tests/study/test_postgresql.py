"""Studies on a PostgreSQL server of the test's own, which is restarted under them."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from optuna.trial import TrialState

from study import search, spaces, storage
from study.settings import StudySettings
from study.sole_writer import SoleWriter

pytestmark = pytest.mark.timeout(300)

N_TRIALS = 12
EPOCHS = 3
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's place; not on PATH


class Server:
    """PostgreSQL on loopback, with a database `studies` that anyone on this machine may use."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.url = f"postgresql://tester@127.0.0.1:{port}/studies"
        self.call("initdb", "--auth=trust", "--username=tester", "--no-sync")
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self.control("start", "-o", settings)
        self.call("createdb", "--host=127.0.0.1", f"--port={port}", "--username=tester", "studies", data=False)

    def call(self, program: str, *words: str, data: bool = True) -> None:
        """The server refuses to be root."""
        become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        where = [f"--pgdata={self.folder / 'data'}"] if data else []
        command = [*become, str(BINARIES[-1] / program), *where, *words]
        subprocess.run(command, check=True, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def control(self, action: str, *words: str) -> None:
        self.call("pg_ctl", "--wait", f"--log={self.folder / 'log'}", *words, action)

    def crash(self) -> None:
        """Every connection breaks; what was committed is recovered."""
        self.control("restart", "--mode=immediate")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not BINARIES:
        pytest.skip("no PostgreSQL server installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # not pytest's, which is closed to other users
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = None
    try:
        server = Server(folder, port)
        yield server
    finally:
        if server is not None:
            server.control("stop", "--mode=immediate")
        shutil.rmtree(folder)


class Driver(threading.Thread):
    """One study as Tune's loop drives it, two trials at once, without workers."""

    def __init__(self, url: str, name: str, space: spaces.Space) -> None:
        super().__init__(daemon=True)
        settings = StudySettings(name=name, depth=8, trials=N_TRIALS, storage=url)
        self.study = storage.open_study(SoleWriter(storage.from_url(url)), name)
        configure = partial(spaces.configure, space, settings)
        self.study.sampler = search.make_sampler(settings, 0, configure, 1000)
        search.enqueue_baselines(self.study, space)
        self.told: list[int] = []
        self.searcher = search.StudySearch(self.study, configure, N_TRIALS, 2, 0, lambda number: {}, self.told.append)
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.drive()
        except Exception as error:
            self.error = error

    def drive(self) -> None:
        epochs: dict[str, int] = {}  # of the trials that run
        n_given = 0
        while (config := self.searcher.suggest(f"t{n_given}")) != search.Searcher.FINISHED:
            if config is not None:
                epochs[f"t{n_given}"] = 0
                n_given += 1
            for trial_id in list(epochs):
                epochs[trial_id] += 1
                row = result(self.searcher.running[trial_id].number, epochs[trial_id])
                if row["done"]:
                    self.searcher.on_trial_complete(trial_id, row)
                    del epochs[trial_id]
                else:
                    self.searcher.on_trial_result(trial_id, row)
            self.searcher.flush()
            time.sleep(0.02)
        self.searcher.settle(lambda: None)


def result(number: int, epoch: int) -> dict[str, object]:
    row = dict.fromkeys(search.CURVE, 0.5) | {"epoch": epoch, "n_examples": 10, "done": epoch == EPOCHS}
    return row | {"adversarial_accuracy": number / 100, "train_seconds": float(epoch * (number + 1))}


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "BASELINES = {'published': {'norm': 'fixup', 'momentum': 0.9}}\n"
        "def space(trial):\n"
        "    trial.suggest_categorical('norm', ['batchnorm', 'fixup'])\n"
        "    trial.suggest_float('momentum', 0, 0.95)\n"
        f"    return {{'epochs': {EPOCHS}}}\n"
    )
    return spaces.load(str(path))


def test_two_studies_write_at_once_while_the_server_is_restarted_under_them(server, space):
    drivers = [Driver(server.url, name, space) for name in ("first", "second")]
    for driver in drivers:
        driver.start()
    for n_told in (2, 6):
        while min(len(driver.told) for driver in drivers) < n_told and all(driver.is_alive() for driver in drivers):
            time.sleep(0.01)
        server.crash()
    for driver in drivers:
        driver.join(timeout=200)
        assert not driver.is_alive() and driver.error is None, driver.error
        search.requeue_interrupted(driver.study)  # as at the end of every run
    for name, driver in zip(("first", "second"), drivers, strict=True):
        trials = storage.existing(server.url, name).trials
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        assert len(complete) == storage.count_finished(server.url, name) == N_TRIALS
        assert sorted(driver.told) == [trial.number for trial in complete]
        assert all(trial.values == [trial.number / 100, 3.0 * (trial.number + 1)] for trial in complete)
        assert all([row["epoch"] for row in trial.user_attrs["curve"]] == [1, 2, 3] for trial in complete)
        assert [trial.user_attrs.get("label") for trial in trials].count("published") == 1
        assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.WAITING}


def test_a_server_that_is_gone_is_one_line_without_the_password(server):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()[1]
    with pytest.raises(storage.InputError, match="storage: .*refused.* given|storage: .*given .*refused") as error:
        storage.from_url(f"postgresql://tester:secret@127.0.0.1:{nobody}/studies")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)
