"""What a worker does around a trial, without Ray."""

import errno
import json
import os
from contextlib import contextmanager

import pytest
import torch

from trainables import data, devices, ray_trainable, stores
from trainables.config import ConstantBatch, DataConfig, EvalConfig, TrialConfig
from trainables.errors import InputError
from trainables.fingerprints import fingerprints
from trainables.ray_trainable import RayTrial
from trainables.stores import DiskStore, Unreachable
from trainables.trial import Trial

CONFIG = TrialConfig(depth=8, batch_size_schedule=ConstantBatch(size=400), epochs=2, eps=0.1, pgd_steps=1)


@pytest.fixture
def worker(tmp_path):
    """Makes the worker of a trial."""

    def make(number: int, config: TrialConfig = CONFIG, objective: str = "measured") -> RayTrial:
        return RayTrial(
            {
                "number": number,
                "name": f"{number:04d}",
                "trial": config.model_dump(mode="json"),
                "data": DataConfig().model_dump(),
                "images": {},
                "evaluation": EvalConfig(eps=0.1, attack_steps=1, examples=4, curve_examples=4).model_dump(),
                "folder": str(tmp_path / f"{number:04d}"),
                "timings": str(tmp_path / "timings"),
                "timing_key": f"resnet8 batchnorm tf32 {config.training}",
                "shared": None,
                "threads": 1,
                "gpu": False,
                "shares_gpu": False,
                "epoch_timeout": 60.0,
                "objective": objective,
                "seconds_per_step": {},
            }
        )

    return make


def test_what_one_worker_measures_all_use_and_each_tells_the_driver(worker, tmp_path):
    first, second = worker(1).step(), worker(2).step()
    assert first["calibrated_seconds"] == second["calibrated_seconds"]
    assert first["calibration"] == second["calibration"] and set(first["calibration"]["seconds_per_step"]) == {"400"}
    (table,) = (tmp_path / "timings").iterdir()
    assert json.loads(table.read_text()) == first["calibration"]["seconds_per_step"]
    other = worker(3, CONFIG.model_copy(update={"training": "fgsm"})).step()
    assert other["calibrated_seconds"] != first["calibrated_seconds"]


def test_who_needs_what_another_has_measured_waits_for_no_epoch(worker, monkeypatch):
    first = worker(1).step()
    monkeypatch.setattr(ray_trainable, "CALIBRATION_PATIENCE", 0.1)
    second = worker(2, objective="calibrated")
    third = worker(3, CONFIG.model_copy(update={"training": "fgsm"}), "calibrated")
    with devices.shared(torch.device("cpu"), second.config["timings"]):  # a neighbour's epoch
        assert second.step()["calibrated_seconds"] == first["calibrated_seconds"]
        assert third.step()["calibrated_seconds"] is None  # nobody has measured it


def test_where_each_has_cores_of_its_own_nobody_waits_for_one_that_calibrates(worker, monkeypatch):
    monkeypatch.setattr(ray_trainable, "CALIBRATION_PATIENCE", 0.1)
    first = worker(1)
    with devices.shared(torch.device("cpu"), first.config["timings"]):  # a neighbour's epoch
        assert first.step()["calibrated_seconds"] > 0
    with devices.alone(torch.device("cpu"), first.config["timings"], 1):  # and its calibration
        assert first.step()["done"]


def test_a_resumed_trial_crafts_its_images_while_nobody_measures(worker, monkeypatch):
    held, crafted, craft, shared = [], [], Trial._craft, devices.shared

    @contextmanager
    def noted(*args):
        with shared(*args):
            held.append(True)
            yield
            held.pop()

    def noting(trial, model, x, y):
        crafted.append((len(x), bool(held)))
        return craft(trial, model, x, y)

    monkeypatch.setattr(devices, "shared", noted)
    monkeypatch.setattr(Trial, "_craft", noting)
    static = CONFIG.model_copy(update={"training": "static"})
    for _ in range(2):
        worker(1, static).step()
    assert [inside for n, inside in crafted if n == 1200] == [True, True]  # 256 at once are crafted to be timed
    crafted.clear()
    assert worker(1, static).step()["done"] and not crafted


def test_a_warm_up_that_hangs_ends_the_worker_as_an_epoch_does(worker, monkeypatch):
    watched, limits, warm_up = [], [], Trial.warm_up

    @contextmanager
    def watchdog(seconds):
        limits.append(seconds)
        yield
        limits.pop()

    def noting(trial):
        watched.append(list(limits))
        warm_up(trial)

    monkeypatch.setattr(ray_trainable, "watchdog", watchdog)
    monkeypatch.setattr(Trial, "warm_up", noting)
    assert worker(1).step()["epoch"] == 1
    assert watched == [[60.0]]


def test_what_a_host_lacks_is_the_studys_problem_and_not_the_trials(worker, tmp_path, monkeypatch):
    no_images = worker(1)
    no_images.config["data"] = DataConfig(name="imagefolder", data_dir=str(tmp_path / "here alone")).model_dump()
    assert no_images.step()["study_problem"] == "the same images are needed on every host"

    def refuse(self, name, data):
        raise PermissionError(errno.EACCES, "Permission denied", name)

    monkeypatch.setattr(DiskStore, "write", refuse)
    assert worker(2).step()["study_problem"].endswith(" may not read or write")
    assert ray_trainable.study_problem(FileNotFoundError(errno.ENOENT, "of a trial's own")) == ""


def test_images_that_a_file_server_keeps_back_are_the_machines_failure(worker, monkeypatch):
    def load(config, device):
        try:
            raise OSError(errno.ESTALE, "Stale file handle")
        except OSError as error:
            raise InputError(f"data_dir: ... cannot be read ({error.strerror})") from None

    monkeypatch.setattr(ray_trainable, "load_dataset", load)
    with pytest.raises(Unreachable, match="Stale file handle"):
        worker(1).step()


def test_a_host_with_other_images_than_the_studys_trains_on_none(worker):
    digits = data.load("digits")
    same, others = worker(1), worker(2)
    same.config["images"] = fingerprints(digits, "test")
    assert same.step()["epoch"] == 1
    others.config["images"] = fingerprints(digits, "test") | {"test": "those of another version"}
    end = others.step()
    assert end["study_problem"] == "the same images are needed on every host"
    assert end["failure"].endswith("data_dir: the test images of 'digits' are not the study's")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_file_server_that_fails_is_the_machines_failure(worker, monkeypatch, number):
    def fail(path, data):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(stores, "write_whole", fail)
    with pytest.raises(Unreachable, match=os.strerror(number)):  # the trial is handed out again
        worker(3).step()
