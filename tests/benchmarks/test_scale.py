import json
import time

import pytest

from benchmarks import scale


def busy(seconds):
    """Take so many processor seconds of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_inner_work_is_not_counted_for_the_outer_one_and_waiting_for_none():
    ledger = scale.Ledger()
    inner = ledger.timed("inner", lambda: busy(0.05))

    def both():
        busy(0.02)
        inner()
        inner()
        time.sleep(0.1)

    ledger.timed("outer", both)()
    assert ledger.seconds["inner"] == pytest.approx(0.10, abs=0.01)
    assert ledger.seconds["outer"] == pytest.approx(0.02, abs=0.01)


def test_a_part_that_raises_is_counted_too():
    ledger = scale.Ledger()

    def fails():
        busy(0.02)
        raise OSError

    with pytest.raises(OSError):
        ledger.timed("a", fails)()
    assert ledger.seconds["a"] == pytest.approx(0.02, abs=0.01) and ledger.inner == [pytest.approx(0.02, abs=0.01)]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_measurement_accounts_for_every_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "BIN", 4)
    out = tmp_path / "scale.json"
    assert scale.main(["--trials", "100", "--concurrent", "2", "--timeout", "20", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    rows = content["seconds_per_trial"]
    assert [row["trials"] for row in rows] == list(range(4, 4 * len(rows) + 1, 4))
    parts = ("display", "proposals", "results", "searcher", "storage", "tune")
    assert all(row[part] >= 0 for row in rows for part in parts)
    assert all(row["wall"] >= sum(row[part] for part in parts) * 0.99 for row in rows)


def test_a_result_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "scale.json"
    out.write_text("mine")
    assert scale.main(["--out", str(out)]) == 2
    assert "exists; accepted: a new file" in capsys.readouterr().err and out.read_text() == "mine"
