"""What TensorBoard reads of a study's folder."""

import logging
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from study import logs
from study.logs import CurvesAndHparams
from trainables.config import TrialConfig

CONFIG = {"number": 7, "trial": TrialConfig(depth=8).model_dump(mode="json"), "data": {"name": "digits"}}


def trial(folder):
    storage = SimpleNamespace(
        trial_fs_path=str(folder), experiment_driver_staging_path="here", experiment_fs_path="there"
    )
    return SimpleNamespace(trial_id="t", config=CONFIG, storage=storage)


def report(epoch, **others):
    return {"epoch": epoch, "adversarial_accuracy": epoch / 10, "calibrated_seconds": None, "pid": 1} | others


def read(folder):
    found = EventAccumulator(str(folder)).Reload()
    curves = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    return curves, "_hparams_/session_start_info" in found.summary_metadata


def test_an_epoch_is_there_at_once_and_the_configuration_when_the_trial_has_ended(tmp_path):
    log, mine = CurvesAndHparams(), trial(tmp_path)
    log.log_trial_start(mine)
    assert list(tmp_path.iterdir()) == []
    for epoch in (1, 2):
        log.log_trial_result(epoch, mine, report(epoch))
        curves, ended = read(tmp_path)
        assert curves == {"ray/tune/adversarial_accuracy": [(i, pytest.approx(i / 10)) for i in range(1, epoch + 1)]}
        assert not ended
    log.log_trial_end(mine)
    assert read(tmp_path)[1] and not log.writers and not log.last
    log.log_trial_end(mine)  # Tune may say it twice


def test_a_trial_that_goes_on_begins_with_the_epochs_that_it_had(tmp_path):
    log = CurvesAndHparams()
    log.log_trial_result(1, trial(tmp_path), report(3, earlier=[report(1), report(2)]))
    assert [step for step, _ in read(tmp_path)[0]["ray/tune/adversarial_accuracy"]] == [1, 2, 3]


def test_a_trial_that_the_machine_failed_has_not_ended(tmp_path):
    log, mine = CurvesAndHparams(), trial(tmp_path)
    log.log_trial_result(1, mine, report(1))
    log.log_trial_end(mine, failed=True)
    assert not read(tmp_path)[1] and not log.writers


def test_a_stop_copies_tunes_own_logs_once_more(tmp_path):
    log, mine, calls = CurvesAndHparams(), trial(tmp_path), []
    mine.storage.syncer = SimpleNamespace(wait=lambda: calls.append("wait"), sync_up=lambda *paths: calls.append(paths))
    log.on_experiment_end([mine])
    assert calls == []  # nothing runs, so Tune has done it
    log.log_trial_result(1, mine, report(1))
    log.on_experiment_end([mine])
    assert calls == ["wait", ("here", "there"), "wait"]


def test_a_full_disk_costs_lines_and_not_the_study(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(logs.EventsWriter, "flush", full)
    log, mine = CurvesAndHparams(), trial(tmp_path)
    with caplog.at_level(logging.WARNING):
        log.log_trial_result(1, mine, report(1))
    assert "TensorBoard misses some of trial 7: No space left" in caplog.text
    mine.storage.syncer = SimpleNamespace(wait=full, sync_up=full)
    log.on_experiment_end([mine])
    log.log_trial_end(mine)
    assert not log.writers
