"""The search as a user meets it: a real study through Ray, its files, and mistakes on the command line."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file

from study import conduct, folders, pareto, reproduce, spaces, storage, train
from study.front import non_dominated
from study.settings import StudySettings, from_layers
from trainables import data
from trainables.errors import InputError
from trainables.trial import load_model

ROOT = Path(__file__).parents[2]
TINY = ["--depth", "8", "--eval-examples", "60", "--attack-steps", "3"]

SPACE = """
BASELINES = {"published [/x]": {"batch_size_schedule.size": 128, "norm": "batchnorm", "lr_batch_ratio": 1e-3}}
BASELINES["published [/x]"]["batch_size_schedule.kind"] = "constant"
DEFAULTS = {"dataset": "digits", "eps": 0.1}

def space(trial):
    trial.suggest_categorical("batch_size_schedule.size", [32, 128])
    trial.suggest_categorical("norm", ["batchnorm", "fixup"])
    trial.suggest_float("lr_batch_ratio", 1e-4, 1e-3, log=True)
    return {"batch_size_schedule.kind": "constant", "epochs": EPOCHS}
"""


def write_space(folder, epochs=2, name="mine.py"):
    path = folder / name
    path.write_text(SPACE.replace("EPOCHS", str(epochs)))
    return str(path)


def open_study(folder, name):
    return optuna.load_study(storage=f"sqlite:///{folder / name / 'study.db'}", study_name=name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results folder of a study of five trials."""
    folder = tmp_path_factory.mktemp("finished")
    command = [write_space(folder), "--trials", "5", "--results-dir", str(folder / "results"), *TINY]
    done = subprocess.run([sys.executable, "-m", "study.pareto", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, command, done


@pytest.mark.cluster
@pytest.mark.slow
class TestFinishedStudy:
    def test_it_ran_what_was_asked_and_no_more(self, finished):
        study = open_study(finished[0] / "results", "mine")
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
        assert study.trials[0].user_attrs["label"] == "published [/x]"
        assert "batch_size_schedule.kind" not in study.trials[0].system_attrs["fixed_params"]  # a constant
        for trial in study.trials:
            curve = trial.user_attrs["curve"]
            assert [row["epoch"] for row in curve] == [1, 2]
            assert 0 < curve[0]["train_seconds"] < curve[1]["train_seconds"] == trial.values[1]

    def test_front_csv_is_the_non_dominated_set_of_trials_csv(self, finished):
        folder = finished[0] / "results" / "mine"
        trials, front = pd.read_csv(folder / "trials.csv"), pd.read_csv(folder / "front.csv")
        expected = trials[non_dominated(trials[["adversarial_accuracy", "train_seconds"]])]
        assert sorted(front.number) == sorted(expected.number)
        assert list(front.train_seconds) == sorted(front.train_seconds)
        assert (front.adversarial_low <= front.adversarial_accuracy).all()
        assert (front.adversarial_accuracy <= front.adversarial_high).all()
        assert (front.n_examples == 60).all()

    def test_each_front_member_has_weights_that_score_what_the_table_says(self, finished):
        folder = finished[0] / "results" / "mine"
        front = pd.read_csv(folder / "front.csv")
        assert sorted(path.name for path in (folder / "models").iterdir()) == sorted(
            Path(path).name for path in front.weights
        )
        validation = data.load("digits").validation
        x, y = data.to_float(validation.images[:60]), validation.labels[:60]
        for path, clean in zip(front.weights, front.clean_accuracy, strict=True):
            with torch.no_grad():
                predicted = load_model(folder / path)(x).argmax(1)
            assert (predicted == y).float().mean().item() == pytest.approx(clean)

    def test_a_member_trained_once_more_has_the_same_weights(self, finished, tmp_path, capsys):
        folder = finished[0] / "results" / "mine"
        member = pd.read_csv(folder / "front.csv").iloc[-1]
        path = tmp_path / "again.safetensors"
        place = ["--results-dir", str(folder.parent), "--out", str(path)]
        assert train.main(["mine", str(member.number), *place]) == 0
        found, again = load_file(folder / member.weights), load_file(path)
        assert found.keys() == again.keys() and all(torch.equal(found[name], again[name]) for name in found)

    def test_every_file_of_the_design_is_there_and_no_checkpoint_is_left(self, finished):
        folder = finished[0] / "results" / "mine"
        for name in ("study.db", "trials.csv", "front.csv", "report.html", "front.png", "study.json", "tune", "models"):
            assert (folder / name).exists(), name
        assert (folder / "space.py").read_bytes() == (finished[0] / "mine.py").read_bytes()
        assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
        assert list((folder / "tune" / "checkpoints").iterdir()) == []
        assert list((folder / "tune").glob("run-*/*/events.out.tfevents.*"))
        study = json.loads((folder / "study.json").read_text())
        assert study["settings"]["trials"] == 5 and study["objective"] == "measured"
        assert study["versions"]["torch"] == torch.__version__.split("+")[0]

    def test_progress_and_results_are_plain_lines_on_stdout(self, finished):
        out = finished[2].stdout
        assert "5/5 done, 0 running, 0 failed" in out and "hypervolume" in out
        assert "front.csv" in out and "--trials 10" in out and "Calibrated seconds are" in out
        assert "#0 published [/x]: adversarial" in out
        assert "\x1b" not in out and "Trial status" not in out
        assert finished[2].stderr == ""

    def test_the_same_command_again_reports_and_runs_nothing(self, finished):
        folder, command, _ = finished
        before = (folder / "results" / "mine" / "trials.csv").read_bytes()
        started = time.monotonic()
        assert pareto.main(command) == 0
        assert time.monotonic() - started < 30
        assert (folder / "results" / "mine" / "trials.csv").read_bytes() == before

    def test_a_file_that_is_not_there_is_not_listed(self, finished, capsys):
        folder, command, _ = finished
        space = folder / "results" / "mine" / "space.py"
        away = space.rename(folder / "away.py")
        assert pareto.main(command) == 0
        away.rename(space)
        out = capsys.readouterr().out
        assert str(space) not in out and str(space.parent / "study.json") in out

    def test_fewer_trials_than_it_has_leave_it_as_it_is(self, finished):
        folder, command, _ = finished
        assert pareto.main([*command, "--trials", "2"]) == 0
        assert open_study(folder / "results", "mine").user_attrs["settings"]["trials"] == 5
        assert "<strong>Unfinished" not in (folder / "results" / "mine" / "report.html").read_text()

    def test_other_settings_under_the_same_name_are_refused_with_the_difference(self, finished, capsys):
        folder, command, _ = finished
        assert pareto.main([*command, "--eps", "0.2"]) == 2
        assert "eps 0.2 (the study has 0.1)" in capsys.readouterr().err

    def test_more_trials_go_on_where_it_ended(self, finished):
        folder, command, _ = finished
        more = [sys.executable, "-m", "study.pareto", "--name", "mine", "--results-dir", str(folder / "results")]
        before = [trial.values for trial in open_study(folder / "results", "mine").trials]
        assert subprocess.run([*more, "--trials", "6"], cwd=ROOT, capture_output=True).returncode == 0
        after = open_study(folder / "results", "mine").trials
        assert [trial.values for trial in after[:5]] == before
        assert [trial.state for trial in after] == [TrialState.COMPLETE] * 6


@pytest.mark.cluster
@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-m", "study.pareto", write_space(tmp_path, epochs=12), "--trials", "3", *TINY]
    command += ["--results-dir", str(tmp_path), "--concurrent", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: n_epochs_of_second(tmp_path) >= 3)
        listening = addresses_listened_on(psutil.Process(process.pid))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, out
    assert len(listening) > 3 and all(is_loopback(address) for address in listening), listening
    states = [trial.state for trial in open_study(tmp_path, "mine").trials]
    assert TrialState.RUNNING not in states and states[:2] == [TrialState.COMPLETE, TrialState.WAITING]
    assert len(pd.read_csv(tmp_path / "mine" / "front.csv")) == 1
    assert "To go on" in out
    first_rows = open_study(tmp_path, "mine").trials[1].user_attrs["curve"]
    logs = [log.read_text() for log in sorted((tmp_path / "mine" / "tune").glob("*/*/result.json"))]
    epochs = [[json.loads(line)["epoch"] for line in log.splitlines()] for log in logs]
    assert epochs == [[*range(1, 13)], [*range(1, len(first_rows) + 1)]]  # Tune's own logs have all that the study has

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    study = open_study(tmp_path, "mine")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    curve = study.trials[1].user_attrs["curve"]
    assert [row["epoch"] for row in curve] == list(range(1, 13))
    assert curve[: len(first_rows)] == first_rows  # nothing that was reported is redone


def is_loopback(address):
    parsed = ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def addresses_listened_on(process):
    """One for each port."""
    sockets = [socket for each in (process, *process.children(recursive=True)) for socket in each.net_connections()]
    return [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]


def n_epochs_of_second(folder):
    study = storage.existing(f"sqlite:///{folder / 'mine' / 'study.db'}", "mine")
    trials = study.trials if study else []
    return len(trials[1].user_attrs.get("curve", [])) if len(trials) > 1 else 0


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@pytest.mark.cluster
@pytest.mark.slow
def test_real_images_in_folders_run_a_small_study(cifar_folder, tmp_path):
    command = [write_space(tmp_path, epochs=1), "--dataset", "imagefolder", "--data-dir", str(cifar_folder)]
    command += ["--results-dir", str(tmp_path), "--trials", "2", "--eps", "2/255", *TINY]
    done = subprocess.run([sys.executable, "-m", "study.pareto", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    study = open_study(tmp_path, "mine")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert study.user_attrs["settings"]["eps"] == 2 / 255


SPACES = {
    "big_batch.py": """
def space(trial):
    return {"batch_size_schedule.kind": "constant", "batch_size_schedule.size": 4096}
""",
    "asks_the_study.py": """
def space(trial):
    trial.suggest_int("epochs", 1, 2 + len(trial.study.trials))
""",
}


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["quickstrat"], "did you mean 'quickstart'"),
        (["no/such/file.py"], "no such file"),
        (["--dataset", "cifar"], "did you mean 'cifar10'"),
        (["--sampler", "nsga"], "did you mean 'nsga2'"),
        (["--depth", "55"], "depth: 55 given; accepted: 6n+2, e.g. 50 or 56"),
        (["--eps", "2"], "eps: 2.0 given"),
        (["--eps", "8/0"], "'8/0' is not a number"),
        (["--attack-norm", "l3"], "attack_norm: 'l3'; accepted: l2, linf"),
        (["--attack-norm", "l2"], "eps: nothing given with attack_norm 'l2'; accepted: its radius, --eps"),
        (["--attack-norm", "l2", "--eps", "128"], "eps: 128.0 given; accepted: at most 100 with attack_norm 'l2'"),
        (["--trials", "0"], "trials: 0 given"),
        (["--trials", "many"], "'many' is not a valid integer"),
        (["--trails", "3"], "--trials"),
        (["--attack-steps", "-1"], "attack_steps: -1 given"),
        (["--eval-examples", "0"], "eval_examples: 0 given"),
        (["--name", "a/b"], "name: 'a/b' given; accepted: up to 100 letters, digits, '.', '_' and '-', a letter or"),
        (["--dataset", "imagefolder"], "data_dir"),
        (["--dataset", "imagefolder", "--data-dir", "no/such/folder"], "no/such/folder"),
        (["--storage", "postgresql://me:secret@127.0.0.1:1/db"], "storage: postgresql://me:***@127.0.0.1:1/db"),
        (["--storage", "nonsense"], "storage: "),
        (["--storage", "sqlite://"], "storage: sqlite:// given, which is gone when the study ends"),
        (["--warm-start", "nobody"], "warm_start: 'nobody'; accepted: none yet in results"),
        (["--storage", "postgresql://me:secret@host:port/db"], "storage: (not a URL)"),
        (["--storage", "sqlite:///no/such/folder/x.db"], "no such folder: no/such/folder"),
        (["--results-dir", "x" * 300], "results_dir: File name too long"),
        (["asks_the_study.py"], "asks_the_study.py:3: AttributeError: 'Draw' object has no attribute 'study'"),
        (["--cpus-per-trial", "0"], "cpus_per_trial: 0.0 given"),
        (["big_batch.py"], "4096 images in a batch given; accepted: at most the training set (1200)"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2_and_writes_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as Python is by itself: no __pycache__ either
    for name, text in SPACES.items():
        (tmp_path / name).write_text(text)
    assert pareto.main(["--results-dir", "results", *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert "secret" not in err and out == ""
    assert {path.name for path in tmp_path.iterdir()} == set(SPACES)


def test_a_home_folder_that_the_shell_left_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr("study.conduct.conduct", lambda settings, space: taken.append(settings) or 0)
    options = ["--results-dir=~/results", "--storage-path=~/weights", "--data-dir=~/images"]
    assert pareto.main(options) == 0
    (settings,) = taken
    assert settings.folder == tmp_path / "results" / "quickstart"
    assert (settings.storage_path, settings.data_dir) == (str(tmp_path / "weights"), str(tmp_path / "images"))
    assert {path.name for path in tmp_path.iterdir()} <= {"results", "weights"}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "somewhere"])
def test_an_address_where_no_cluster_answers_is_a_mistake_too(address, tmp_path, capsys):
    assert pareto.main(["--address", address, "--results-dir", str(tmp_path / "results")]) == 2
    assert f"address: {address!r} given" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.cluster
@pytest.mark.parametrize(
    "option,field", [("--cpus-per-trial", "cpus_per_trial"), ("--gpus-per-trial", "gpus_per_trial")]
)
def test_more_than_the_machine_has_is_refused(option, field, tmp_path, capsys):
    assert pareto.main([option, "64", "--results-dir", str(tmp_path / "results")]) == 2
    assert f"{field}: 64.0 given; accepted: at most" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_full_disk_is_a_mistake_before_anything_is_written(tmp_path, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 5_000_000})
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: usage)
    assert pareto.main(["--results-dir", str(tmp_path / "results")]) == 2
    assert "5 MB free" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "place", ["{folder}/file/x", "/proc/x", "gopher://host/x", "s3://key:secret@bucket/x"], ids=lambda place: place[:6]
)
def test_a_storage_path_that_cannot_be_written_is_a_mistake_before_anything_is_written(place, tmp_path, capsys):
    (tmp_path / "file").touch()
    place = place.format(folder=tmp_path)
    assert pareto.main(["--results-dir", str(tmp_path / "results"), "--storage-path", place]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: storage_path: ") and error.count("\n") == 1 and "secret" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_new_study_does_not_go_on_from_an_earlier_ones_checkpoints(tmp_path, capsys):
    place, results = tmp_path / "shared", tmp_path / "results"
    (place / "quickstart" / "0003").mkdir(parents=True)
    (place / "quickstart" / "timings").mkdir()
    options = ["--results-dir", str(results), "--storage-path", str(place)]
    assert pareto.main(options) == 2
    assert f"storage_path: {place}/quickstart has checkpoints of an earlier study (0003);" in capsys.readouterr().err
    assert not results.exists()
    settings, _ = pareto.resolve({"results_dir": str(results), "storage_path": str(place)})
    settings.folder.mkdir(parents=True)
    optuna.create_study(storage=settings.storage_url, study_name="quickstart", directions=storage.DIRECTIONS)
    folders.check_storage_path(settings)  # its own


def test_a_folder_with_other_files_is_not_taken_over(tmp_path, capsys):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "thesis.tex").write_text("mine")
    assert pareto.main(["--results-dir", str(tmp_path)]) == 2
    assert "holds files but no study.db" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "quickstart").iterdir()] == ["thesis.tex"]


def test_a_folder_that_was_copied_under_another_name_is_not_begun_anew(tmp_path, capsys):
    made(StudySettings(name="mine", results_dir=str(tmp_path), eps=0.1))
    (tmp_path / "mine").rename(tmp_path / "copy")
    before = sorted((path, path.read_bytes()) for path in (tmp_path / "copy").iterdir())
    assert pareto.main(["--results-dir", str(tmp_path), "--name", "copy"]) == 2
    assert "copy holds study 'mine'; accepted: a folder of that name" in capsys.readouterr().err
    assert sorted((path, path.read_bytes()) for path in (tmp_path / "copy").iterdir()) == before


def test_a_folder_of_another_study_is_not_taken_over_by_one_elsewhere(tmp_path, capsys):
    folder, other = tmp_path / "quickstart", f"sqlite:///{tmp_path / 'other.db'}"
    command = ["--results-dir", str(tmp_path), "--storage", other]
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps({"settings": {"eps": 0.3}}))
    assert pareto.main(command) == 2  # nothing there that it could be the folder of
    assert "holds files of another study" in capsys.readouterr().err
    settings = StudySettings(name="quickstart", storage=other, results_dir=str(tmp_path), eps=0.1)
    conduct.open_study(settings, spaces.load("quickstart"), 1000)
    assert pareto.main(command) == 2
    assert "holds files of another study" in capsys.readouterr().err
    (folder / "study.json").write_text(json.dumps({"settings": settings.model_dump(mode="json")}))
    assert pareto.resolve({"results_dir": str(tmp_path), "storage": other})[0].identity == settings.identity


def test_a_folder_stays_its_studys_when_the_space_has_moved(tmp_path):
    study = storage.open_study(storage.from_url(f"sqlite:///{tmp_path / 'study.db'}"), "mine")
    study.set_user_attr("settings", {"name": "mine", "space": "/there/mine.py", "eps": 0.1})
    for space, eps, same in [
        ("/here/mine.py", 0.1, True),
        ("/here/other.py", 0.1, False),
        ("/there/mine.py", 0.2, False),
    ]:
        written = {"settings": {"name": "mine", "space": space, "eps": eps}}
        (tmp_path / "study.json").write_text(json.dumps(written))
        assert folders.made_with(tmp_path, study) is same


def test_a_study_whose_space_is_gone_says_where_its_text_is(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    study = storage.open_study(storage.from_url(f"sqlite:///{tmp_path}/mine/study.db"), "mine")
    gone = StudySettings(name="mine", space="/gone/wide.py", results_dir=str(tmp_path))
    study.set_user_attr("settings", gone.model_dump(mode="json"))
    assert pareto.main(["--name", "mine", "--results-dir", str(tmp_path)]) == 2
    error = "error: space: /gone/wide.py of study 'mine' is gone; "
    assert capsys.readouterr().err == f"{error}accepted: a copy of {tmp_path}/mine/space.py, named wide.py\n"


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]])
def test_another_programs_study_is_not_taken_over(directions, tmp_path, capsys):
    url = f"sqlite:///{tmp_path / 'other.db'}"
    theirs = optuna.create_study(storage=url, study_name="quickstart", directions=directions)
    theirs.add_trial(optuna.trial.create_trial(values=[0.5] * len(directions)))
    assert pareto.main(["--results-dir", str(tmp_path / "results"), "--storage", url]) == 2
    assert "is another program's study" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["other.db"] and len(theirs.trials) == 1


@pytest.mark.parametrize(
    ("main", "command", "stored", "line"),
    [
        (pareto.main, [], {"paper": "accelat"}, "name: 'mine' holds a reproduction; accepted: a new --name"),
        (
            pareto.main,
            ["quickstart"],
            {"paper": "accelat"},
            "name: 'mine' holds a reproduction; accepted: a new --name",
        ),
        (reproduce.main, ["accelat"], {"space": "quickstart"}, "name: 'mine' holds a search; accepted: a new --name"),
        (pareto.main, [], {"search": "theirs"}, "name: 'mine' is a confirmation; accepted: the search 'theirs'"),
        (reproduce.main, ["accelat"], {"search": "theirs"}, "name: 'mine' is a confirmation; accepted: .*"),
    ],
)
def test_a_study_of_another_kind_is_not_taken_over(main, command, stored, line, tmp_path, capsys):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    theirs = storage.open_study(storage.from_url(url), "mine")
    theirs.set_user_attr("settings", {"name": "mine"} | stored)
    folder = tmp_path / "results"
    assert main([*command, "--name", "mine", "--results-dir", str(folder), "--storage", url]) == 2
    assert re.fullmatch(f"error: {line}", capsys.readouterr().err.splitlines()[-1])
    assert not folder.exists()


def made(settings: StudySettings) -> None:
    """A study without trials, as one that was interrupted at once."""
    settings.folder.mkdir(parents=True)
    conduct.open_study(settings, spaces.load(settings.space), 1000)


def test_a_study_to_start_from_may_go_and_is_never_the_study_itself(tmp_path, capsys):
    given = {"results_dir": str(tmp_path), "name": "new"}
    for name, warm_start in (("old", None), ("new", "old")):
        made(StudySettings(name=name, results_dir=str(tmp_path), eps=0.1, warm_start=warm_start))
    assert pareto.resolve(given)[0].warm_start == "old"
    shutil.rmtree(tmp_path / "old")
    assert pareto.resolve(given)[0].warm_start is None
    assert "'old' is gone" in capsys.readouterr().err
    with pytest.raises(InputError, match="warm_start: 'old'; accepted: new"):
        pareto.resolve(given | {"warm_start": "old"})
    with pytest.raises(InputError, match="warm_start: 'new' given, the study itself"):
        pareto.resolve(given | {"warm_start": "new"})


def test_the_objective_that_a_study_has_may_be_named(tmp_path):
    given = {"results_dir": str(tmp_path), "name": "mine"}
    made(StudySettings(**given, eps=0.1))
    study = storage.named("mine", str(tmp_path), None)
    study.set_user_attr("objective", "measured")
    assert pareto.resolve(given)[0].objective is None
    assert pareto.resolve(given | {"objective": "measured"})[0].objective == "measured"
    with pytest.raises(InputError, match="objective 'calibrated' .the study has 'measured'."):
        pareto.resolve(given | {"objective": "calibrated"})


def test_accuracies_of_a_start_under_another_attack_are_not_taken_in_silence(tmp_path, capsys):
    made(StudySettings(name="old", results_dir=str(tmp_path), eps=0.2))
    given = {"results_dir": str(tmp_path), "warm_start": "old"}
    for eps, said in [(0.2, ""), (0.1, "warm_start: study 'old' has eps 0.2; what is proposed will count its acc")]:
        settings, _ = pareto.resolve(given | {"name": "new", "eps": eps, "depth": 8})
        assert settings.warm_start == "old"
        err = capsys.readouterr().err
        assert err.startswith(said) and bool(err) == bool(said)


def test_the_norm_of_the_attack_is_the_users_then_the_studys_then_the_spaces(tmp_path):
    space = tmp_path / "l2.py"
    space.write_text(Path(spaces.load("quickstart").path).read_text() + 'DEFAULTS |= {"attack_norm": "l2", "eps": 0.5}')
    given = {"results_dir": str(tmp_path)}
    assert pareto.resolve(given)[0].evaluation.attack_norm == "linf"
    of_the_space, _ = pareto.resolve(given | {"space": str(space)})
    assert (of_the_space.evaluation.attack_norm, of_the_space.eps) == ("l2", 0.5)
    with pytest.raises(InputError, match="eps: nothing given with attack_norm 'linf'"):
        pareto.resolve(given | {"space": str(space), "attack_norm": "linf"})
    mine, l2 = given | {"name": "mine"}, {"attack_norm": "l2"}
    settings, _ = pareto.resolve(mine | l2 | {"eps": 2.0})
    made(settings)
    assert pareto.resolve(mine)[0] == pareto.resolve(mine | l2)[0] == settings
    for linf in ({"attack_norm": "linf", "eps": 0.1}, {"attack_norm": "linf"}):
        with pytest.raises(InputError, match="attack_norm 'linf' .the study has 'l2'."):
            pareto.resolve(mine | linf)
    assert pareto.resolve(mine | {"eps": 2.0})[0] == settings
    space.write_text(space.read_text().replace('"l2", "eps": 0.5}', '"l2", "eps": 2.0}'))
    with pytest.raises(InputError, match="eps: nothing given with attack_norm 'linf'"):
        pareto.resolve(given | {"space": str(space), "attack_norm": "linf"})
    space.write_text('DEFAULTS = {"attack_norm": "l2"}\ndef space(trial):\n    return {"epochs": 1}\n')
    with pytest.raises(InputError, match="eps: nothing given with attack_norm 'l2'"):
        pareto.resolve(given | {"space": str(space)})


def test_a_study_older_than_the_norm_goes_on_in_linf(tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    settings = StudySettings(name="old", results_dir=str(tmp_path), eps=0.1, storage=url)
    made(settings)
    study = storage.open_study(storage.from_url(url), "old")
    written = {field: value for field, value in study.user_attrs["settings"].items() if field != "attack_norm"}
    settings.folder.mkdir(exist_ok=True)
    (settings.folder / "study.json").write_text(json.dumps({"settings": written}))
    assert folders.made_with(settings.folder, study)  # one of them was written by an earlier version
    study.set_user_attr("settings", written)
    space = tmp_path / "old.py"
    space.write_text(Path(spaces.load("quickstart").path).read_text() + 'DEFAULTS |= {"attack_norm": "l2", "eps": 0.5}')
    given = {"name": "old", "results_dir": str(tmp_path), "storage": url, "space": "quickstart"}
    assert pareto.resolve(given)[0].attack_norm == "linf"
    stored = storage.settings_of(study, {})
    assert from_layers({"name": "old"}, stored, spaces.load(str(space)).defaults).attack_norm == "linf"


def test_a_start_under_another_norm_is_told(tmp_path, capsys):
    made(StudySettings(name="old", results_dir=str(tmp_path), eps=0.1))
    old = storage.named("old", str(tmp_path), None)
    settings = {field: value for field, value in old.user_attrs["settings"].items() if field != "attack_norm"}
    old.set_user_attr("settings", settings)  # of before it was one
    given = {"results_dir": str(tmp_path), "warm_start": "old", "name": "new", "attack_norm": "l2", "eps": 0.1}
    pareto.resolve(given)
    assert "'old' has attack_norm linf; what is proposed" in capsys.readouterr().err


def test_a_study_of_the_users_own_space_goes_on_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "mine.py"
    file.write_text(Path(spaces.load("quickstart").path).read_text())
    monkeypatch.chdir(tmp_path)
    given = {"results_dir": str(tmp_path / "results")}
    settings, _ = pareto.resolve(given | {"space": "there/mine.py"})
    made(settings)
    for space in ("there/mine.py", "./there/mine.py", str(file)):
        assert pareto.resolve(given | {"space": space})[0].space == str(file)
    monkeypatch.chdir(tmp_path / "there")
    assert pareto.resolve(given | {"name": "mine"})[1].path == file
    file.rename(tmp_path / "mine.py")
    assert pareto.resolve(given | {"space": "../mine.py"})[0].space == str(tmp_path / "mine.py")
    with pytest.raises(InputError, match="other settings: space 'quickstart'"):
        pareto.resolve(given | {"space": "quickstart", "name": "mine"})


def test_a_confirmation_is_neither_continued_nor_learned_from(tmp_path, capsys):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    study = storage.open_study(storage.from_url(url), "mine-confirm")
    study.set_user_attr("settings", {"name": "mine-confirm", "search": "mine", "space": ""})
    given = ["--results-dir", str(tmp_path / "results"), "--storage", url]
    for option, field in [("--name", "name"), ("--warm-start", "warm_start")]:
        assert pareto.main([*given, option, "mine-confirm"]) == 2
        expected = f"error: {field}: 'mine-confirm' is a confirmation; accepted: the search 'mine'\n"
        assert capsys.readouterr().err == expected
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_written_is_a_mistake_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders.os, "access", lambda path, mode: str(path) != str(tmp_path))
    assert pareto.main(["--results-dir", str(tmp_path / "results")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_second_driver_is_refused(tmp_path, capsys):
    from study.lock import driver_lock

    (tmp_path / "quickstart").mkdir()
    with driver_lock(tmp_path / "quickstart"):
        open_ = optuna.create_study(
            storage=f"sqlite:///{tmp_path / 'quickstart' / 'study.db'}",
            study_name="quickstart",
            directions=["maximize", "minimize"],
        )
        assert pareto.main(["--results-dir", str(tmp_path)]) == 2
    assert "is being run by host" in capsys.readouterr().err
    assert open_.trials == []


def test_help_explains_every_option(capsys):
    assert pareto.main(["--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--name", "--trials", "--timeout", "--dataset", "--data-dir", "--depth", "--eps", "--address"):
        assert option in out


def test_how_long_one_run_may_last_is_not_kept_with_the_study(tmp_path):
    settings = StudySettings(name="short", results_dir=str(tmp_path), timeout=5)
    settings.folder.mkdir()
    conduct.open_study(settings, spaces.load("quickstart"), 1000)
    again, _ = pareto.resolve({"name": "short", "results_dir": str(tmp_path)})
    assert again.timeout is None
    assert again.identity == settings.identity
