"""The dashboards as a person starts and stops them."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil
import pytest

from study import dashboard, storage
from study.lock import driver_lock
from tests.study import browser, synthetic

ROOT = Path(__file__).parents[2]
fetch = build_opener(ProxyHandler({})).open


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results folder of a made-up study of 2,000 trials, with TensorBoard logs of two of them."""
    from tensorboardX import SummaryWriter

    folder = tmp_path_factory.mktemp("results")
    (folder / "synthetic").mkdir()
    synthetic.write(f"sqlite:///{folder / 'synthetic' / 'study.db'}", 2000)
    for number in range(2):
        with SummaryWriter(str(folder / "synthetic" / "tune" / "run" / f"{number:04d}")) as writer:
            writer.add_scalar("adversarial_accuracy", 0.5, 1)
    return folder


@pytest.fixture(scope="module")
def running(results):
    """The command's process while it serves, its addresses, and the processor seconds it took to print them."""
    command = [sys.executable, "-m", "study.dashboard", "synthetic", "--results-dir", str(results)]
    as_a_person_does = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores Ctrl-C
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_a_person_does,
    )
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        seconds = sum(psutil.Process(process.pid).cpu_times()[:2])  # a busy machine takes longer by the clock
        addresses = dict(line.split(maxsplit=1) for line in lines[:3])
        yield process, {name: where.strip() for name, where in addresses.items()}, seconds
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
class TestRunning:
    def test_both_answer_after_less_than_twenty_seconds_of_processor_time_on_a_study_of_2000_trials(self, running):
        _, addresses, seconds = running
        assert seconds < 20
        assert b"optuna" in fetch(addresses["Optuna"], timeout=30).read().lower()
        assert b"tensorboard" in fetch(addresses["TensorBoard"], timeout=30).read().lower()

    def test_ray_is_said_not_to_run_where_it_does_not(self, running):
        assert running[1]["Ray"] == "no cluster of this study answers"

    def test_they_listen_on_this_machine_only(self, running):
        process, _, _ = running
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        listening = [
            connection.laddr.ip
            for member in family
            for connection in member.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 2 and set(listening) <= {"127.0.0.1", "::1"}

    def test_optunas_shows_the_trials_with_their_user_attributes(self, running):
        with browser.chromium(browser.DESKTOP) as page:
            page.get(running[1]["Optuna"].replace("/studies/1", "/studies/1/trials?numbers=0"))
            deadline = time.monotonic() + 60
            while "Fixup" not in (text := page.find_element("tag name", "body").text) and "label" not in text:
                assert time.monotonic() < deadline, text
                time.sleep(0.5)
            assert "BatchNorm 128" in text
            browser.screenshot(page, browser.ARTEFACTS / "dashboard-optuna.png")

    def test_ctrl_c_stops_both_and_leaves_no_process_behind(self, running):
        process, addresses, _ = running
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and err.strip() == ""
        assert psutil.wait_procs(family, timeout=10)[1] == []
        for name in ("Optuna", "TensorBoard"):
            port = int(re.search(r":(\d+)", addresses[name]).group(1))
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=2)


@pytest.mark.parametrize(
    "driver, named",
    [("none", False), ("killed", False), ("runs", True), ("on another host", True), ("results elsewhere", True)],
)
def test_ray_is_this_studys_only_while_a_driver_may_run_it(driver, named, tmp_path, monkeypatch, capsys):
    url, folder = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "results" / "mine"
    study = storage.open_study(storage.from_url(url), "mine")
    study.set_user_attr("settings", synthetic.SETTINGS)
    if driver != "results elsewhere":
        folder.mkdir(parents=True)
    host = {"killed": socket.gethostname(), "on another host": "elsewhere"}.get(driver)
    if host:
        (folder / ".driver.json").write_text(json.dumps({"host": host, "pid": 1}))

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(dashboard.time, "sleep", interrupt)
    with socket.create_server(("127.0.0.1", 0)) as somebody, driver_lock(folder) if driver == "runs" else nullcontext():
        ray = {"dashboard": f"http://127.0.0.1:{somebody.getsockname()[1]}", "metrics": "http://127.0.0.1:1/metrics"}
        study.set_user_attr("ray", ray)
        assert dashboard.main(["mine", "--results-dir", str(folder.parent), "--storage", url]) == 130
    out = capsys.readouterr().out
    assert (ray["dashboard"] in out, ray["metrics"] in out) == (named, named)
    assert ("no cluster of this study answers" in out) != named


def test_ray_is_named_where_it_answers():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert dashboard.answers(url)
    assert not dashboard.answers(url)


def test_an_unknown_study_is_answered_with_the_nearest(results, capsys):
    assert dashboard.main(["synthetik", "--results-dir", str(results)]) == 2
    assert capsys.readouterr().err == "error: name: 'synthetik' (did you mean 'synthetic'?); accepted: synthetic\n"


def test_a_storage_that_does_not_answer_is_named_without_its_password(capsys):
    assert dashboard.main(["mine", "--storage", "postgresql://me:secret@127.0.0.1:1/db"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: storage: postgresql://me:***@127.0.0.1:1/db") and err.count("\n") == 1
    assert "secret" not in out + err


def test_where_there_are_no_logs_yet_optunas_dashboard_is_started_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "new").mkdir()
    study = storage.open_study(storage.from_url(f"sqlite:///{tmp_path / 'new' / 'study.db'}"), "new")
    study.set_user_attr("settings", synthetic.SETTINGS)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(dashboard.time, "sleep", interrupt)
    assert dashboard.main(["new", "--results-dir", str(tmp_path)]) == 130
    out = capsys.readouterr().out
    assert re.search(r"Optuna +http://127\.0\.0\.1:\d+/dashboard/studies/1\n", out)
    assert f"no logs in {tmp_path / 'new' / 'tune'}" in out
