import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import engine, plain_loop
from benchmarks.engine_table import floor_seconds, parity_differences, small_against_large, table
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
                "prepare_seconds": 1.0}  # fmt: skip

    rows = [step(8, "plain", 40.0), step(8, "engine", 10.0), step(128, "plain", 60.0), step(128, "engine", 80.0)]
    sections = {"steps": {"rows": rows}, "ceilings": {"rows": ceilings}, "kernels": {"rows": [{**cell, "kernels": 2}]}}
    small, large = table(sections)
    assert (small["variants"]["engine"]["times_plain"], large["variants"]["engine"]["times_plain"]) == (4, 0.75)
    assert small["floor"] == {"ms_per_step": 5.0, "by": "bytes", "times": 2.0}
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


def test_the_floor_is_the_largest_of_three_bounds():
    ceilings = [
        {"what": "matrix product", "precision": "tf32", "flop_per_second": 100.0},
        {"what": "copy", "bytes_per_second": 10.0},
        {"what": "graph node", "seconds": 0.5},
    ]
    counts = {"flops": 200, "least_bytes": 50}
    assert floor_seconds(counts, 4, ceilings) == {"flops": 2.0, "bytes": 5.0, "kernels": 2.0}
    assert floor_seconds(counts, 4, ceilings[:1]) == floor_seconds(counts, None, ceilings) == {}


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
