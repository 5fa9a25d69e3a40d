"""A study's images are known by what they are, not by where they lie."""

import numpy as np
import pytest
from PIL import Image

from study import conduct, confirm, confirmation, images, members, pareto, spaces, train
from study.settings import StudySettings
from tests.study.confirmations import SETTINGS, add
from trainables.errors import InputError


def write_images(folder, n_train=10, n_test=3, seed=0):
    rng = np.random.default_rng(seed)
    for part, n in [("train", n_train), ("test", n_test)]:
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return str(folder)


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """A search on the images in `here`, made and with one trial that ended; the working directory is its own."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "here")
    settings = StudySettings(**SETTINGS | {"dataset": "imagefolder", "data_dir": "here", "trials": 2})
    settings.folder.mkdir(parents=True)
    _, seen = images.load(settings)
    study = images.kept(seen, lambda: conduct.open_study(settings, spaces.load("quickstart"), 16))
    add(study, 0.5, 10.0)
    return study


def refused(function, *arguments):
    with pytest.raises(InputError) as error:
        function(*arguments)
    return str(error.value)


def continued(data_dir):
    return pareto.resolve({"name": "mine", "data_dir": data_dir})[0]


def confirmed(searched, **given):
    return confirm.resolve(searched, given)


def test_the_same_images_elsewhere_continue_a_study_and_confirm_it(searched, tmp_path):
    (tmp_path / "here").rename(tmp_path / "there")
    images.load(continued("there"), None)
    images.load(confirmed(searched, data_dir=str(tmp_path / "there")), searched)
    assert "data_dir: " in refused(images.load, pareto.resolve({"name": "mine"})[0])  # no longer where it was


@pytest.mark.parametrize("others", [{"n_train": 11}, {"seed": 1}])
def test_other_training_images_are_refused_by_one_line(others, searched, tmp_path, capsys):
    there = write_images(tmp_path / "there", **others)
    before = (tmp_path / "results" / "mine" / "study.db").read_bytes()
    expected = f"error: data_dir: {there!r} given, whose training images are not those of study 'mine'; accepted: "
    for command, given in [(pareto, ["--name", "mine"]), (confirm, ["mine"]), (train, ["mine", "4"])]:
        assert command.main([*given, "--data-dir", there]) == 2
        err = capsys.readouterr().err
        assert err.startswith(expected) and err.count("\n") == 1
    assert (tmp_path / "results" / "mine" / "study.db").read_bytes() == before
    assert not (tmp_path / "results" / "mine" / "confirm").exists() and not list(tmp_path.glob("mine-0004*"))


def test_test_images_bind_a_confirmation_and_not_a_search(searched, tmp_path):
    settings = confirmed(searched)
    _, seen = images.load(settings, searched)
    settings.folder.mkdir()
    chosen = members.default_members(searched.trials)
    study = images.kept(seen, lambda: confirmation.prepare(settings, chosen))
    assert set(study.user_attrs["images"]) == {"training", "test"} and set(searched.user_attrs["images"]) == {
        "training"
    }
    write_images(tmp_path / "here", n_train=0, n_test=3, seed=1)  # as many, others
    images.load(continued("here"), None)
    message = refused(images.load, confirmed(searched), searched)
    assert message.startswith("data_dir: 'here' given, whose test images are not those of study 'mine-confirm'")


def test_a_study_of_an_earlier_version_is_not_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = StudySettings(**SETTINGS | {"dataset": "imagefolder", "data_dir": "here"})
    settings.folder.mkdir(parents=True)
    study = conduct.open_study(settings, spaces.load("quickstart"), 16)
    add(study, 0.5, 10.0)
    assert "images" not in images.kept({"training": "x"}, lambda: study).user_attrs
    assert "data_dir 'there' (the study has 'here')" in refused(continued, "there")
