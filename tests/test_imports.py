"""Imports point one way: study to search_spaces and trainables, never back."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def files(folder, but=()):
    return [path for path in sorted((ROOT / folder).glob("*.py")) if path.name not in but]


@pytest.mark.parametrize("path", files("trainables", but=["ray_trainable.py"]), ids=lambda p: p.name)
def test_a_trial_needs_neither_ray_nor_optuna_nor_the_study(path):
    assert not set(imported(path)) & {"ray", "optuna", "study", "search_spaces"}


RAY_HERE = ["runner.py", "search.py", "logs.py", "metrics.py"]


@pytest.mark.parametrize("path", [*files("study", but=RAY_HERE), *files("study/papers")], ids=lambda p: p.name)
def test_ray_stays_in_the_files_that_translate(path):
    assert not set(imported(path)) & {"ray", "torch"}


@pytest.mark.parametrize("name", RAY_HERE)
def test_what_translates_for_ray_needs_no_tensors(name):
    assert "torch" not in set(imported(ROOT / "study" / name))


TRAINS = """
import sys, torch, torch.nn.functional as F
from trainables import engine, resnet, sgd

model = resnet.resnet(8, 10, 1, "fixup")
optimizer = sgd.SGD(model, momentum=0.9, nesterov=True, weight_decay=5e-4)
optimizer.set_lr(0.1)
engine.train_step(model, optimizer, lambda model, x, y: x, torch.rand(4, 1, 8, 8), torch.arange(4))
sys.exit("torch._dynamo" in sys.modules)
"""


def test_a_training_step_does_without_torchs_compiler():
    assert subprocess.run([sys.executable, "-c", TRAINS], cwd=ROOT).returncode == 0


COMMANDS = ["pareto", "report", "reproduce", "confirm", "recommend", "train", "dashboard"]


@pytest.mark.parametrize("module", [*(f"study.{name}" for name in COMMANDS), "trainables.config"])
def test_a_command_starts_without_torch_or_ray(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
