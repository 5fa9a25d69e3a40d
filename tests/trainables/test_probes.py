import copy
from typing import get_args

import pytest
import torch
from torch import nn

from trainables import probes
from trainables.config import EvalConfig, Probe
from trainables.norms import BatchNorm2d

EPS = 0.1


def linear(weight):
    """Two classes; the image's sum times `weight`, minus a half of it, decides."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0] * 4, [weight] * 4]))
        model[1].bias.copy_(torch.tensor([0.0, -2.0 * weight]))
    return model


def subject(model, levels, labels, train=None, eps=EPS, attack_norm="linf"):
    """Images of 1x2x2 equal pixels; the linear model calls those above 0.5 class 1."""
    x = torch.tensor(levels)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    y = torch.tensor(labels)
    return probes.Subject(model, train or (x, y), (x, y), eps, seed=0, attack_norm=attack_norm)


def test_the_table_has_every_name_of_the_configuration():
    assert set(probes.PROBES) == set(get_args(Probe))
    assert EvalConfig(probes=get_args(Probe)).probes == get_args(Probe)


def test_names_are_dotted():
    found = probes.measure(["fgsm", "noise"], subject(linear(1.0), [0.2, 0.8], [0, 1]))
    assert found == {"fgsm.accuracy": 1.0, "noise.accuracy": 1.0}


def test_fgsm_takes_what_lies_within_eps_of_the_boundary():
    # Distances from 0.5: 0.3, 0.05, 0.15, 0.05 and, misclassified clean, 0.3.
    found = probes.fgsm_accuracy(subject(linear(1.0), [0.2, 0.45, 0.65, 0.55, 0.8], [0, 0, 1, 1, 0]))
    assert found["accuracy"] == pytest.approx(2 / 5)


def test_strong_attacks_are_the_evaluations_own(monkeypatch):
    seen = []
    monkeypatch.setattr(probes.strong, "measure", lambda attacked, n: seen.append((attacked, n)) or {})
    like = subject(linear(1.0), [0.2, 0.8], [0, 1], eps=0.7, attack_norm="l2")
    probes.strong_attacks(like._replace(attack_steps=3, strong_examples=1, seed=5))
    ((attacked, n),) = seen
    assert (attacked.eps, attacked.steps, attacked.seed, attacked.norm, n) == (0.7, 3, 5, "l2", 1)


@pytest.mark.parametrize("attack_norm,share", [("linf", 0.0), ("l2", 2 / 3)])
def test_one_step_of_l2_takes_four_equal_pixels_half_as_far(attack_norm, share):
    # Distances from 0.5: 0.07 and 0.06 a pixel, which are 0.14 and 0.12 in l2, and 0.04, which is 0.08.
    found = probes.fgsm_accuracy(subject(linear(1.0), [0.43, 0.56, 0.46], [0, 1, 0], attack_norm=attack_norm))
    assert found["accuracy"] == pytest.approx(share)


def test_noise_of_l2_crosses_what_noise_of_linf_does_not_reach():
    # One of four pixels may move by all of 0.3 in l2, or all by 0.15: a mean 0.16 away is reached in l-inf alone.
    far = [0.34] * 500
    assert probes.noise(subject(linear(1.0), far, [0] * 500, eps=0.3, attack_norm="l2")) == {"accuracy": 1.0}
    assert probes.noise(subject(linear(1.0), far, [0] * 500, eps=0.3))["accuracy"] < 1.0


def test_noise_within_eps_cannot_cross_a_boundary_farther_away():
    assert probes.noise(subject(linear(1.0), [0.39, 0.61], [0, 1])) == {"accuracy": 1.0}


def test_noise_crosses_a_boundary_on_the_image_half_of_the_time():
    found = probes.noise(subject(linear(1.0), [0.5] * 2000, [0] * 2000))
    assert found["accuracy"] == pytest.approx(0.5, abs=0.05)  # 4.5 standard deviations


def test_hessian_of_logistic_regression_has_its_closed_form():
    """Weights W (2, d+1 with bias): H = mean of (diag p - pp') ⊗ xx', so for one repeated image 2·p(1-p)·|x|²."""
    model = linear(0.7)
    example = subject(model, [0.3] * 8, [0, 1] * 4)
    p = torch.softmax(model(example.judged[0][:1]), 1)[0, 0].item()
    squared = 4 * 0.3**2 + 1
    found = probes.hessian(example)
    assert found["1"] == pytest.approx(2 * p * (1 - p) * squared, rel=1e-3)
    assert found["2"] == pytest.approx(0, abs=1e-4)


def test_hessian_looks_at_the_training_images_in_eval_mode_and_leaves_the_mode():
    model = nn.Sequential(BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2)).train()
    few = subject(model, [0.3] * 4, [0] * 4, train=subject(model, [0.2, 0.9], [0, 1]).judged)
    other = few._replace(judged=(few.judged[0] * 0, few.judged[1]))
    assert probes.hessian(few) == probes.hessian(other)
    assert model.training and model[0].training


class Neighbours(nn.Module):
    """Class 1 for images brighter than their batch's mean."""

    def forward(self, x):
        brightness = x.mean((1, 2, 3))
        return torch.stack([brightness.mean().expand(len(x)), brightness], 1)


def test_predictions_that_follow_the_batch_are_counted():
    # Two halves of 128, each with a dark and a bright 64. Of all 256, the mean is 0.5: the brighter half is class 1.
    levels = [0.1] * 64 + [0.3] * 64 + [0.7] * 64 + [0.9] * 64
    example = subject(Neighbours(), levels, [0] * 128 + [1] * 128)
    found = probes.batch_dependence(example)
    # In batches of 128 the second and third quarter swap; in batches of 32 or alone nothing exceeds its mean.
    assert found == {
        "n": 256,
        "accuracy.256": 1.0,
        "accuracy.128": 0.5,
        "accuracy.32": 0.5,
        "accuracy.1": 0.5,
        "changed.128": 128,
        "changed.32": 128,
        "changed.1": 128,
        "changed.any": 192,
    }


def test_no_prediction_changes_where_examples_are_independent():
    found = probes.batch_dependence(subject(linear(1.0), [0.2, 0.8] * 150, [0, 1] * 150))
    assert found["n"] == 256 and found["changed.any"] == 0
    assert {found[f"accuracy.{size}"] for size in probes.BATCHES} == {1.0}


def test_fewer_images_than_a_batch_are_all_used():
    assert probes.batch_dependence(subject(linear(1.0), [0.2] * 9, [0] * 9))["n"] == 9


@pytest.mark.parametrize(
    ("fgsm", "pgd", "epoch"),
    [
        ([0.4, 0.5, 0.6, 0.9, 0.95], [0.3, 0.4, 0.45, 0.02, 0.0], 4),  # collapses while FGSM rises
        ([0.4, 0.5, 0.6, 0.9], [0.3, 0.4, 0.45, 0.30], None),  # falls, but keeps more than half
        ([0.4, 0.5, 0.6, 0.1], [0.3, 0.4, 0.45, 0.02], None),  # both collapse: that is divergence
        ([0.4, 0.5, 0.6], [0.08, 0.09, 0.0], None),  # too little to lose
        ([0.4, 0.9, 0.5], [0.4, 0.1, 0.5], 2),  # recovers later, but it happened
        ([0.5, 0.6, 0.7, 0.8], [0.5, 0.4, 0.3, 0.2], 4),  # bit by bit
        ([0.4, 0.3, 0.5], [0.1, 0.5, 0.1], 3),  # after the best, which is not the first
        ([0.4, 0.5], [0.5, 0.25], 2),  # half is enough
        ([0.4, 0.4], [0.5, 0.1], None),  # FGSM stays
        ([0.5], [0.5], None),
        ([], [], None),
    ],
)
def test_catastrophic_overfitting_is_pgd_collapsing_while_fgsm_rises(fgsm, pgd, epoch):
    assert probes.catastrophic_overfitting(fgsm, pgd) == epoch


def test_noise_is_another_one_for_each_seed():
    example = subject(linear(1.0), [0.5] * 200, [0] * 200)
    assert len({probes.noise(example._replace(seed=seed))["accuracy"] for seed in range(5)}) > 1


@pytest.mark.parametrize("probe", sorted(set(probes.PROBES) - {"strong"}))
def test_a_probe_looks_at_the_model_in_eval_mode_and_changes_none_of_its_buffers(probe):
    model = nn.Sequential(BatchNorm2d(1), *linear(1.0)).train()
    before, modes = copy.deepcopy(model.state_dict()), set()
    model[0].register_forward_hook(lambda module, *_: modes.add(module.training))
    probes.PROBES[probe](subject(model, [0.2, 0.9, 0.6], [0, 1, 1]))
    assert modes == {False} and model.training
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


class Nowhere(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 2), torch.nan)


def test_predictions_that_are_not_numbers_are_errors_at_each_batch_size():
    found = probes.batch_dependence(subject(Nowhere(), [0.2] * 4, [0] * 4))
    assert {found[f"accuracy.{size}"] for size in probes.BATCHES} == {0.0}


def test_eigenvalues_that_do_not_fit_into_memory_are_an_error(monkeypatch):
    def full(*args, **settings):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(probes, "dominant_eigenvalues", full)
    with pytest.raises(torch.OutOfMemoryError):
        probes.hessian(subject(linear(1.0), [0.2], [0]))
