import io
import logging
import math
import signal
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import optuna
import pytest
import torch
import yaml

from study import runner, storage
from study.progress import Output, Progress
from study.settings import StudySettings
from study.sole_writer import SoleWriter
from study.storage import DIRECTIONS
from tests.study.trials import add
from trainables import ray_trainable
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.stores import Unreachable


@pytest.mark.parametrize(
    "given,asked",
    [
        ({"gpus_per_trial": 0.5}, 1),
        ({"gpus_per_trial": 1}, 0),
        ({}, 0),
        ({"gpus_per_trial": 0.5, "address": "auto"}, 0),
    ],
)
def test_trials_that_share_a_gpu_of_this_machine_have_mps_before_ray_starts(given, asked, monkeypatch, caplog):
    events = []

    @contextmanager
    def mps():
        events.append("mps")
        yield "not there"

    def ray(settings, local):
        events.append("ray")
        return nullcontext()

    monkeypatch.setattr(runner, "mps", mps)
    monkeypatch.setattr(runner, "started_ray", ray)
    monkeypatch.setattr(runner, "sufficient_resources", lambda settings: {"GPU": 1.0})
    with caplog.at_level(logging.WARNING), runner.cluster(StudySettings(name="a", **given)) as resources:
        assert resources == {"GPU": 1.0}
    assert events == ["mps"] * asked + ["ray"]
    assert caplog.text.count("without MPS: not there") == asked


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("place", ["/" + 41 * "x", "/tmp/ünï"])
def test_a_temporary_folder_that_rays_sockets_do_not_fit_into_is_refused_before_ray_starts(name, place, monkeypatch):
    monkeypatch.setattr(runner.os, "getpid", lambda: 12345)
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv(name, place)
    refused = f"^{name}: '{place}' given, {len(place)} characters; accepted: up to 41 ASCII characters"
    with pytest.raises(InputError, match=refused), runner.cluster(StudySettings(name="a")):
        pass
    monkeypatch.setenv("RAY_TMPDIR", "/" + 40 * "x")
    runner.require_short_temporary_folder()


def test_ray_keeps_its_token_at_home_if_it_can(tmp_path, monkeypatch):
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runner.can_keep_a_token()
    monkeypatch.setattr(runner.os, "access", lambda path, mode: False)
    assert not runner.can_keep_a_token()
    monkeypatch.setattr(runner.os, "access", lambda path, mode: path == tmp_path)
    assert runner.can_keep_a_token()
    (tmp_path / ".ray").mkdir()
    assert not runner.can_keep_a_token()
    (tmp_path / ".ray" / "auth_token").touch()
    assert runner.can_keep_a_token()


@pytest.mark.parametrize(
    "said, line",
    [
        ("too slow\nstack\n", "too slow"),
        ("The last lines of the log:\na\n  no threads\n", "The last lines of the log: no threads"),
        ("Version mismatch:\n  here 3.11\n  there 3.12", "Version mismatch: here 3.11 there 3.12"),
    ],
)
def test_what_ray_said_is_one_line_with_its_cause(said, line):
    assert runner.in_one_line(said) == line


@pytest.mark.parametrize("place", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "127.0.0.1:1"])
def test_an_address_at_which_no_study_can_run_is_refused_before_ray_tries(place, monkeypatch):
    monkeypatch.setattr(runner.ray, "init", lambda **given: pytest.fail("Ray tried"))
    monkeypatch.setenv("RAY_ADDRESS", place)
    for address, source in ((place, ""), ("auto", " by RAY_ADDRESS")):
        refused = f"^address: '{place}' given{source}.*; accepted: `auto`, or host:port"
        with pytest.raises(InputError, match=refused), runner.cluster(StudySettings(name="a", address=address)):
            pass


def test_a_cluster_that_asks_for_a_token_says_so(monkeypatch):
    def init(**given):
        raise ConnectionError("no cluster") from RuntimeError("RPC error: InvalidAuthToken: missing or incorrect")

    monkeypatch.setattr(runner.ray, "init", init)
    with (
        pytest.raises(InputError, match=r"^address: 'head:1' given \(no cluster\).*RAY_AUTH_MODE=token"),
        runner.started_ray(StudySettings(name="a", address="head:1"), {}),
    ):
        pass


def test_a_sigterm_that_all_processes_of_a_study_get_leaves_ray_on_this_machine_alone(monkeypatch):
    blocked = []
    monkeypatch.setattr(
        runner.ray,
        "init",
        lambda **given: blocked.append(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    )
    monkeypatch.setattr(runner.ray, "shutdown", lambda: None)
    for local in ({"include_dashboard": True}, {}):
        with runner.started_ray(StudySettings(name="a"), local):
            assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert blocked == [True, False]  # what a process blocks when it starts, its children block


ONE_GPU_EACH = [{"CPU": 8.0}, *[{"CPU": 4.0, "GPU": 1.0}] * 8]
STARTABLE = {"head": ({"CPU": 0}, 0), "worker": ({"CPU": 4, "GPU": 1}, 8)}  # by `ray up`: what each has, how many


@pytest.fixture
def on(tmp_path, monkeypatch):
    """Makes Ray have these nodes, and its autoscaler be allowed those."""

    def make(there, startable):
        types = {name: {"resources": has, "max_workers": most} for name, (has, most) in startable.items()}
        (tmp_path / "bootstrap.yaml").write_text(yaml.safe_dump({"available_node_types": types}))
        monkeypatch.setattr(runner, "AUTOSCALER_FILE", tmp_path / "bootstrap.yaml")
        lost = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        monkeypatch.setattr(runner.ray, "nodes", lambda: [*({"Alive": True, "Resources": has} for has in there), lost])
        total = {kind: sum(has.get(kind, 0.0) for has in there) for kind in ("CPU", "GPU")}
        monkeypatch.setattr(runner.ray, "cluster_resources", lambda: total)

    return make


@pytest.mark.parametrize("nodes", [(ONE_GPU_EACH, {}), ([], STARTABLE)], ids=["there", "to be started"])
@pytest.mark.parametrize(
    "given, answer",
    [
        ({"gpus_per_trial": 2}, "gpus_per_trial: 2.0 given; accepted: at most 1, all that one node"),
        ({"cpus_per_trial": 6}, "cpus_per_trial: 6.0 given; accepted: at most 4, all that one node with enough GPUs"),
    ],
)
def test_a_trial_that_fits_no_single_node_is_refused(nodes, given, answer, on):
    on(*nodes)
    with pytest.raises(InputError) as refusal:
        runner.sufficient_resources(StudySettings(name="a", address="auto", **given))
    assert str(refusal.value) == f"{answer} has"


@pytest.mark.parametrize(
    "given, nodes",
    [
        ({"gpus_per_trial": 1, "cpus_per_trial": 4}, (ONE_GPU_EACH, {})),
        ({"gpus_per_trial": 1, "cpus_per_trial": 4}, ([], STARTABLE)),
        ({"gpus_per_trial": 0, "cpus_per_trial": 8}, (ONE_GPU_EACH, {})),
    ],
)
def test_a_trial_that_fits_one_node_is_accepted_and_all_nodes_count(given, nodes, on):
    on(*nodes)
    assert runner.sufficient_resources(StudySettings(name="a", address="auto", **given))["GPU"] == 8


def test_no_more_nodes_are_counted_than_a_cluster_may_have_in_all(on, tmp_path):
    on([], STARTABLE)
    config = yaml.safe_load(runner.AUTOSCALER_FILE.read_text())
    runner.AUTOSCALER_FILE.write_text(yaml.safe_dump(config | {"max_workers": 2}))
    settings = StudySettings(name="a", address="auto", gpus_per_trial=1)
    assert runner.n_concurrent(settings, runner.sufficient_resources(settings)) == 2


@pytest.mark.parametrize(
    "given, objective",
    [
        ({}, "measured"),
        ({"cpus_per_trial": 0.5}, "calibrated"),  # four trials on two cores
        ({"cpus_per_trial": 0.5, "concurrent": 1}, "measured"),
        ({"cpus_per_trial": 2}, "measured"),
    ],
)
def test_trials_that_share_a_core_are_timed_by_calibration(given, objective, on):
    on([{"CPU": 2.0}], {})
    settings = StudySettings(name="a", **given)
    assert runner.resolve_objective(optuna.create_study(), settings, {"CPU": 2.0}) == objective


def test_a_store_that_does_not_answer_when_a_trial_ends_does_not_end_the_study(tmp_path, monkeypatch, caplog):
    study = optuna.create_study(directions=DIRECTIONS)
    add(study, 0.5, 10.0)

    def unreachable(*args):
        raise Unreachable("s3://bucket: no answer")

    shown = []
    monkeypatch.setattr(runner, "sync_models", unreachable)
    monkeypatch.setattr(runner, "write_tables", lambda *args: shown.append("tables"))
    progress = SimpleNamespace(update=lambda trials, ended: shown.append(ended.number))
    runner.Results(study, tmp_path, "s3://bucket", progress).told(0)
    assert shown == ["tables", 0] and "weights are fetched later: s3://bucket: no answer" in caplog.text


def test_a_trials_end_is_its_own_where_others_have_enqueued_trials_since(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=SoleWriter(storage.from_url(url)), study_name="a", directions=DIRECTIONS)
    study.ask()
    optuna.load_study(storage=url, study_name="a").enqueue_trial({})
    last = study.ask()
    shown = []
    monkeypatch.setattr(runner, "sync_models", lambda trials, folder, place, ended: shown.append(ended.number))
    monkeypatch.setattr(runner, "write_tables", lambda *args: None)
    progress = SimpleNamespace(update=lambda trials, ended: shown.append(ended.number))
    runner.Results(study, tmp_path, str(tmp_path), progress).told(last.number)
    assert shown == [2, 2] and last.number == 2


def test_a_run_that_nobody_reads_any_more_is_interrupted():
    stop, progress = runner.StopRequest(None), Progress(Output(file=io.StringIO(), quiet=True), 1, 0)
    search = SimpleNamespace(study=optuna.create_study(directions=DIRECTIONS), problem=None, flush=lambda: None)
    watch = runner.Watch(search, stop, progress, 1.0, None)
    watch.looked = watch.shown = math.inf
    watch.on_step_begin()
    progress.console.unread = True
    with pytest.raises(runner.Stop, match="^interrupted$"):
        watch.on_step_begin()


def test_rays_word_for_this_machine_is_no_address():
    assert StudySettings(name="a", address="local").address is None


def test_on_one_machine_what_an_autoscaler_may_start_does_not_count(on):
    on([{"CPU": 2.0}], STARTABLE)
    with pytest.raises(InputError, match="cpus_per_trial: 4.0 given; accepted: at most 2, all that this machine has"):
        runner.sufficient_resources(StudySettings(name="a", cpus_per_trial=4))


@pytest.mark.parametrize(
    "there, startable, given, n",
    [
        (ONE_GPU_EACH, {}, {"gpus_per_trial": 0.6}, 8),  # two times 0.4 GPU on two nodes are no place for a third
        (ONE_GPU_EACH, {}, {"gpus_per_trial": 0.1}, 32),  # four CPUs beside each GPU
        (ONE_GPU_EACH, {}, {"gpus_per_trial": 0, "cpus_per_trial": 3}, 2 + 8),
        ([{"CPU": 16.0, "GPU": 2.0}], {}, {"gpus_per_trial": 0.6}, 2),  # one on each: no trial has parts of two
        ([{"CPU": 16.0, "GPU": 3.0}], {}, {"gpus_per_trial": 2}, 1),
        ([{"CPU": 0.0}, {"CPU": 4.0, "GPU": 1.0}], STARTABLE, {"gpus_per_trial": 0.5}, 16),
        ([{"CPU": 2.0}], {}, {"concurrent": 1}, 1),
    ],
)
def test_as_many_trials_run_at_once_as_fit_on_the_nodes_one_by_one(there, startable, given, n, on):
    on(there, startable)
    settings = StudySettings(name="a", address="auto", **given)
    assert runner.n_concurrent(settings, runner.sufficient_resources(settings)) == n


class Caught(Exception):
    """Holds what was about to be used."""


@pytest.mark.parametrize("gpus, device", [(0, "cpu"), (0.5, "cuda"), (None, "cuda")])
def test_a_trial_trains_on_the_gpu_only_where_it_was_given_one(gpus, device, tmp_path, monkeypatch):
    def search(study, configure, n_trials, n_concurrent, retries, worker_config, *rest):
        raise Caught(worker_config(0))

    def trial(config, dataset, evaluation, device, shares_gpu):
        raise Caught(device.type)

    monkeypatch.setattr(runner, "StudySearch", search)
    monkeypatch.setattr(runner.metrics, "addresses", dict)
    monkeypatch.setattr(runner, "alive", lambda: [{"CPU": 2.0, "GPU": 1.0}])
    monkeypatch.setattr(ray_trainable, "Trial", trial)
    monkeypatch.setattr(ray_trainable, "load_dataset", lambda config, device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as on a machine with one, whatever Ray gave
    settings = StudySettings(name="a", results_dir=str(tmp_path), gpus_per_trial=gpus)
    study = optuna.create_study()
    study.set_user_attr("images", {"training": "of the study"})
    with pytest.raises(Caught) as made:
        runner.run(study, None, settings, {"CPU": 2.0, "GPU": 1.0}, None, "calibrated")
    (config,) = made.value.args
    assert config["objective"] == "calibrated" and config["images"] == {"training": "of the study"}
    worker = ray_trainable.RayTrial(
        config | {"number": 0, "images": {}, "trial": TrialConfig().model_dump(mode="json")}
    )
    with pytest.raises(Caught, match=device):
        worker._open()
