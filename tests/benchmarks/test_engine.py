import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import engine, plain_loop
from benchmarks.engine_table import floor_seconds, lines, parity_differences, small_against_large, table
from trainables.attacks import classified
from trainables.resnet import resnet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "engine.json"
    assert engine.main(["--smoke", "--out", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.slow
def test_the_shrunken_form_runs_every_section_to_its_end(content):
    assert list(content["sections"]) == list(engine.SECTIONS)
    assert {section["status"] for section in content["sections"].values()} == {"complete"}
    assert all(section["rows"] for section in content["sections"].values())
    assert sum(limit for _, limit in engine.SECTIONS.values()) < 600


@pytest.mark.slow
def test_every_cell_has_its_variants_and_a_floor(content):
    assert len(content["table"]) == 4  # two norms, two trainings
    for cell in content["table"]:
        assert {"plain", "plain, channels_last and autocast", "engine", "engine bf16"} <= set(cell["variants"])
        assert cell["floor"]["times"] > 1 and cell["capture_seconds"] > 0


def test_the_table_relates_variants_to_plain_to_the_floor_and_to_each_other():
    ceilings = [
        {"what": "matrix product", "precision": "tf32", "flop_per_second": 1e6},
        {"what": "copy", "bytes_per_second": 1e6},
        {"what": "graph node", "seconds": 1e-3},
    ]
    cell = {"norm": "fixup", "training": "natural"}

    def step(size, variant, ms):
        speed = {"ms_per_step": ms, "images_per_second": 1000 * size / ms}
        return {**cell, "batch_size": size, "variant": variant, **speed, "flops": 100, "least_bytes": 5000,
                "prepare_seconds": 1.0, "n_captures": 2}  # fmt: skip

    rows = [step(8, "plain", 40.0), step(8, "engine", 10.0), step(128, "plain", 60.0), step(128, "engine", 80.0)]
    rows.append({**cell, "batch_size": 8, "variant": "engine bf16", "failed": "out of memory"})
    rows.append(step(512, "engine", 80.0))  # whose plain loop failed
    counted = [{**cell, "batch_size": 8, "kernels": 2}, {**cell, "batch_size": 128, "failed": "no kernel seen"}]
    found = {"steps": rows, "ceilings": ceilings, "kernels": counted}
    sections = {name: {"status": "complete", "seconds": 1.0, "rows": rows} for name, rows in found.items()}
    small, large, alone = table(sections)
    assert "times_plain" not in alone["variants"]["engine"] and set(small["variants"]) == {"plain", "engine"}
    shown = "\n".join(lines([small, large, alone], sections))
    assert "failed out of memory" in shown and "failed no kernel seen" in shown and "  nan\n" in shown
    assert (small["variants"]["engine"]["times_plain"], large["variants"]["engine"]["times_plain"]) == (4, 0.75)
    assert small["floor"] == {"ms_per_step": 5.0, "by": "bytes", "times": 2.0, "without": []}
    assert large["floor"]["without"] == alone["floor"]["without"] == ["kernels"]
    assert shown.count("floor, by bytes, without kernels ") == 2 and shown.count("floor, by bytes  ") == 1
    assert (small["capture_seconds"], small["n_captures"]) == (1.0, 2)
    assert small_against_large([small, large]) == pytest.approx({"fixup, natural": (10 / 8) / (80 / 128)})


def test_precisions_are_compared_seed_by_seed():
    def row(seed, precision, clean):
        return {"seed": seed, "precision": precision, "clean_accuracy": clean, "robust_accuracy": 0.5}

    rows = [row(0, "fp32", 0.8), row(0, "bf16", 0.7), row(1, "fp32", 0.6), row(1, "bf16", 0.7), row(2, "bf16", 0.1)]
    clean, robust = parity_differences({"parity": {"rows": rows}})
    assert (clean["precision"], clean["of"], clean["seeds"], robust["interval"]) == (
        "bf16",
        "clean_accuracy",
        2,
        [0, 0],
    )
    # Differences -0.1 and 0.1: mean 0, standard error 0.1, t of one degree of freedom 12.706.
    assert clean["mean"] == pytest.approx(0) and clean["interval"] == pytest.approx([-1.2706, 1.2706])


@pytest.mark.slow
def test_a_pgd_step_costs_what_its_passes_add_up_to(content):
    flops = {
        (row["norm"], row["training"]): row["flops"] for row in content["sections"]["steps"]["rows"] if "flops" in row
    }
    for norm in ("batchnorm", "fixup"):
        natural, pgd = flops[norm, "natural"], flops[norm, "pgd"]
        # One attack step adds a forward pass and the input half of a backward pass: 2 of a training step's 3 parts,
        # and what the first convolution's input costs, which training alone leaves out.
        assert 2 / 3 * natural < pgd - natural < 0.8 * natural


def test_kernels_are_counted_at_each_batch_size(monkeypatch):
    said = []
    monkeypatch.setattr(engine, "work", lambda trainer, size: {"operations": 100 * size})
    engine.kernels(replace(engine.SMOKE, batch_sizes=(4, 8), norms=("fixup",)), said.append)
    assert [(row["batch_size"], row["kernels"]) for row in said] == [(4, 400), (4, 400), (8, 800), (8, 800)]


def test_no_kernels_seen_is_no_count(monkeypatch):
    said, counts = [], iter([{}, {"conv": [5.0, 7.0, 3.0], "add": [1.0]}])
    monkeypatch.setattr(engine, "profiled_kernels", lambda call: next(counts))
    settings = replace(engine.SMOKE, norms=("fixup",))
    train, _ = engine.images(settings)
    trainer = engine.make_trainer(settings, train, "fixup", "natural", 4)
    for _ in range(2):
        with engine.said_if_it_fails(said.append, {}):
            said.append(engine.launched(replace(settings, device="cuda"), trainer, 4))
    time = {"most time: how often, mean microseconds": {"conv": [3, 5.0], "add": [1, 1.0]}}
    counted = {"kernels": 4, "counted_by": "profiler"} | time
    assert said == [{"failed": "RuntimeError: the profiler saw no kernel"}, counted]


@pytest.mark.parametrize("name", engine.SECTIONS)
def test_cudnn_times_its_kernels_where_the_header_says_so(name, monkeypatch, tmp_path):
    def section(settings, say):
        say({"timed": torch.backends.cudnn.benchmark})

    monkeypatch.setitem(engine.SECTIONS, name, (section, 1.0))
    engine.run_section(name, engine.SMOKE, tmp_path / "rows.json")
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["timed"] == (name not in ("heuristic", "packing", "streams"))


@pytest.fixture
def events(monkeypatch):
    """Steps by their size, what is prepared and looks at the clock, in order."""
    happened, step, prepare = [], engine.engine.Trainer._step, engine.Graphs.prepare

    def step_told(self, size):
        happened.append(size)
        step(self, size)

    def prepare_told(self, key, work, state):
        happened.extend(["prepares"] * (key not in self.prepared))
        prepare(self, key, work, state)

    monkeypatch.setattr(engine.engine.Trainer, "_step", step_told)
    monkeypatch.setattr(engine.Graphs, "prepare", prepare_told)
    monkeypatch.setattr(engine, "now", lambda settings: happened.append("clock") or time.perf_counter())
    return happened


@pytest.mark.parametrize("count", [True, False])
def test_all_sizes_of_a_pass_are_met_before_captures_are_timed(count, events):
    train, _ = engine.images(engine.SMOKE)
    assert len(train) % 4 == 2
    _, row = engine.engine_seconds(engine.SMOKE, train, 4, "batchnorm", "natural", {}, count)
    before = events[: events.index("clock")]
    assert set(before) == {4, 2}
    assert events[len(before) :][:6] == ["clock", "prepares", 4, "prepares", 2, "clock"]
    assert row["n_captures"] == 0  # none off CUDA


def test_meeting_the_sizes_changes_nothing():
    train, _ = engine.images(engine.SMOKE)
    trainer = engine.make_trainer(engine.SMOKE, train, "batchnorm", "pgd", 4)
    before = [tensor.clone() for tensor in (*trainer._state(), trainer.generator.get_state())]
    engine.meet(trainer, 4)
    after = [*trainer._state(), trainer.generator.get_state()]
    assert all(map(torch.equal, before, after))


def test_parity_times_training_alone(events):
    train, _ = engine.images(engine.SMOKE)
    engine.trained(engine.SMOKE, train, "fp32", 0)
    assert events == ["prepares", 66, "clock", 66, "clock"]


def test_the_floor_is_the_largest_of_three_bounds():
    ceilings = [
        {"what": "matrix product", "precision": "tf32", "flop_per_second": 100.0},
        {"what": "copy", "bytes_per_second": 10.0},
        {"what": "graph node", "seconds": 0.5},
    ]
    counts = {"flops": 200, "least_bytes": 50}
    assert floor_seconds(counts, 4, ceilings) == {"flops": 2.0, "bytes": 5.0, "kernels": 2.0}
    assert floor_seconds(counts, 4, ceilings[:1]) == {"flops": 2.0}
    assert floor_seconds(counts, None, ceilings) == {"flops": 2.0, "bytes": 5.0}


def test_the_plain_attack_is_torchattacks():
    torchattacks = pytest.importorskip("torchattacks")
    model = resnet(8, 10, 3, "batchnorm", generator=torch.Generator().manual_seed(0)).eval()
    x, y = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    torch.manual_seed(0)
    theirs = torchattacks.PGD(model, eps=0.1, alpha=0.03, steps=3)(x, y)
    torch.manual_seed(0)
    ours = plain_loop.pgd_as_torchattacks(model, 0.1, 0.03, 3)(x, y)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(classified(model, ours, y), classified(model, theirs, y))


def test_it_needs_torch_torchvision_and_numpy_alone():
    missing = (
        "pydantic",
        "ray",
        "optuna",
        "sklearn",
        "scipy",
        "pandas",
        "click",
        "rich",
        "safetensors",
        "torchattacks",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import benchmarks.engine"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["--smoke", "--out", "missing/folder/x.json"], "out"),
        (["--smoke", "--out", "x.json", "--sections", "stepps"], "sections"),
        (["--smoke", "--out", "x.json", "--data", "missing"], "data"),
        (["--smoke"], "--out"),
    ],
)
def test_a_bad_option_gets_one_line(argv, field, capsys):
    assert engine.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and field in error


@pytest.mark.parametrize("error", [RuntimeError("a worker died"), OSError("too many open files")])
def test_a_loader_that_fails_costs_its_own_cell_alone(error, monkeypatch):
    said, images = [], plain_loop.Images.__getitem__
    errors = iter([error])

    def once_broken(self, index):
        for each in errors:
            raise each
        return images(self, index)

    monkeypatch.setattr(plain_loop.Images, "__getitem__", once_broken)
    engine.steps(replace(engine.SMOKE, norms=("batchnorm",)), said.append)
    failed = [row for row in said if "failed" in row]
    assert [(row["training"], row["variant"]) for row in failed] == [("natural", "plain")]
    assert str(error) in failed[0]["failed"] and type(error).__name__ in failed[0]["failed"]
    assert len(said) == 2 * (len(engine.PLAIN) + len(engine.variants("batchnorm", first=True)))  # two trainings


def test_a_packed_process_that_fails_costs_the_other_way_nothing(monkeypatch):
    said = []

    def packed(settings):
        raise RuntimeError("a packed process ended")
        yield

    monkeypatch.setattr(engine, "mps", lambda: nullcontext(""))
    monkeypatch.setattr(engine, "packed_processes", packed)
    engine.packing(engine.SMOKE, said.append)
    assert [row["how"] for row in said] == ["processes with MPS", "processes"]
    assert all(row["failed"] == "a packed process ended" for row in said)


def test_a_packed_process_that_dies_ends_the_wait():
    settings, start = replace(engine.SMOKE, packing_cells=((4, "no such norm"),), packed=(1,)), time.perf_counter()
    with pytest.raises(RuntimeError, match="ended or hung before it said ready"):
        list(engine.packed_processes(settings))
    assert time.perf_counter() - start < 120


def test_torchs_own_batch_norm_is_batch_norm():
    nets = [engine.network(engine.SMOKE, norm) for norm in ("batchnorm", engine.NATIVE)]
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(*(net(x) for net in nets))
    torch.testing.assert_close(*(dict(net.named_buffers()) for net in nets))


def test_no_section_goes_on_beyond_the_end_of_all(monkeypatch):
    limits = []
    monkeypatch.setattr(engine, "within", lambda seconds, command, environment: limits.append(seconds) or 0)
    monkeypatch.setattr(engine.time, "perf_counter", lambda: 100.0)
    for end in (1000.0, 107.0, 90.0):
        assert engine.measured("kernels", engine.Settings(), [], end)["status"] == "complete"
    assert limits == [engine.SECTIONS["kernels"][1], 7.0, 1.0]
    engine.measured("kernels", engine.Settings(), [], 1000.0, stretch=2.0)
    assert limits[-1] == 2 * engine.SECTIONS["kernels"][1]


@pytest.mark.parametrize(("returned", "status"), [(0, "complete"), (1, "failed"), (None, "cut off after 60 s")])
def test_a_sections_status_is_how_its_process_ended(returned, status, monkeypatch):
    monkeypatch.setattr(engine, "within", lambda seconds, command, environment: returned)
    assert engine.measured("kernels", engine.Settings(), [], math.inf)["status"] == status


def test_a_section_has_its_environment_from_its_start(monkeypatch):
    environments = []
    monkeypatch.setattr(engine, "within", lambda seconds, command, environment: environments.append(environment) or 0)
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    for name in ("streams", "steps"):
        engine.measured(name, engine.Settings(), [], math.inf)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "4")  # the user's choice
    engine.measured("streams", engine.Settings(), [], math.inf)
    assert [each.get("CUDA_DEVICE_MAX_CONNECTIONS") for each in environments] == ["32", None, "4"]
    assert environments[1].items() >= {"PATH": os.environ["PATH"]}.items()


SECTION = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else lambda *_: sys.exit(3))
try:
    Path(sys.argv[1]).touch()
    time.sleep(60)
finally:
    print("cleaned up", flush=True)
"""


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("section", 9.0), KeyboardInterrupt()])
@pytest.mark.parametrize(("how", "grace", "said"), [("hearing", 50.0, "cleaned up\n"), ("deaf", 0.1, "")])
def test_a_section_may_clean_up_before_it_is_killed(error, how, grace, said, monkeypatch, tmp_path, capfd):
    wait, begun, waited = subprocess.Popen.wait, tmp_path / "begun", []

    def interrupted(self, timeout=None):
        waited.append((self, timeout))
        if len(waited) > 1:
            return wait(self, timeout)
        while not begun.exists():
            time.sleep(0.05)
        raise error

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    monkeypatch.setattr(engine, "GRACE_SECONDS", grace)
    with pytest.raises(KeyboardInterrupt) if isinstance(error, KeyboardInterrupt) else nullcontext():
        assert engine.within(9.0, [sys.executable, "-c", SECTION, str(begun), how], os.environ) is None
    process, seconds = waited[0]
    assert seconds == 9.0 and process.returncode == (3 if how == "hearing" else -signal.SIGKILL)
    assert capfd.readouterr().out == said


def test_within_its_time_a_section_returns_its_status():
    assert engine.within(60.0, [sys.executable, "-c", "raise SystemExit(7)"], os.environ) == 7


def test_a_section_that_is_told_to_end_cleans_up(monkeypatch, tmp_path):
    happened = []

    def section(settings, say):
        try:
            with engine.said_if_it_fails(say, {}):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # once more, while it cleans up
            happened.append("cleaned up")

    def before(*_):
        happened.append("not handled")

    ours = signal.signal(signal.SIGTERM, before)
    try:
        monkeypatch.setitem(engine.SECTIONS, "packing", (section, 1.0))
        with pytest.raises(SystemExit):
            engine.main(["--smoke", "--section", "packing", "--out", str(tmp_path / "rows.json")])
        assert happened == ["cleaned up"] and signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, ours)


def test_processes_without_mps_find_no_daemon(monkeypatch, tmp_path):
    found = {}

    def packed(settings):
        folder = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        found[folder] = os.listdir(folder)
        yield {}

    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    (tmp_path / "control").touch()
    monkeypatch.setattr(engine, "mps", lambda: nullcontext(""))
    monkeypatch.setattr(engine, "packed_processes", packed)
    engine.packing(engine.SMOKE, lambda row: None)
    (with_mps, files), (without, there) = found.items()
    assert there == [] and not Path(without).exists()
    assert (with_mps, files) == (str(tmp_path), ["control"])
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path)


def test_fewer_images_than_it_needs_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine.data, "imagefolder", lambda folder: SimpleNamespace(labels=range(43)))
    out = tmp_path / "engine.json"
    assert engine.main(["--smoke", "--data", str(tmp_path), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: data: 43 images in {tmp_path}/train given; accepted: at least 44\n"
    assert not out.exists()
