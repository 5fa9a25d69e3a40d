"""Attacks that check PGD, against networks whose robust examples are known in closed form."""

import pytest
import torch
from torch import nn

from trainables import strong
from trainables.norms import BatchNorm2d
from trainables.resnet import resnet

RADII = {"linf": 0.1, "l2": 0.2}


def linear(n_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, n_classes))
    nn.init.normal_(model[1].weight, generator=generator)
    nn.init.normal_(model[1].bias, generator=generator)
    return model


def examples(model, n, seed=1, norm="linf"):
    """Images whose balls lie within [0, 1], with the model's own classes, and whether each is robust in closed form:
    no other class overtakes when the image goes as far as it may against the difference of the two classes' weights."""
    x = 0.2 + 0.6 * torch.rand(8 * n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = model(x)
        y = logits.argmax(1)
        weight = model[1].weight
        dual = torch.linalg.vector_norm(weight[y][:, None] - weight, ord=1 if norm == "linf" else 2, dim=2)
        margins = logits.gather(1, y[:, None]) - logits - RADII[norm] * dual
        others = torch.ones_like(margins, dtype=torch.bool).scatter(1, y[:, None], False)
        worst = margins.masked_fill(~others, float("inf")).amin(1)
    clear = worst.abs() > 0.05
    return x[clear][:n], y[clear][:n], (worst > 0)[clear][:n]


def attacked(model, x, y, eps=None, norm="linf"):
    return strong.Attacked(model, x, y, eps or RADII[norm], steps=10, seed=0, norm=norm)


@pytest.mark.parametrize("norm", sorted(RADII))
@pytest.mark.parametrize("n_classes", [3, 4])
def test_autoattack_finds_just_the_examples_of_a_linear_model_that_are_not_robust(n_classes, norm):
    model = linear(n_classes)
    x, y, robust = examples(model, 12, norm=norm)
    assert 0 < robust.sum() < len(robust)
    found = strong.under_autoattack(attacked(model, x, y, norm=norm), strong.WHITE_BOX)
    assert found.tolist() == robust.tolist()


@pytest.mark.parametrize(
    ("n_classes", "norm", "radii"),
    [
        (4, "linf", ["0.05", "0.1", "0.2", "0.4", "0.5"]),
        # Of more than two, the steepest way up the cross-entropy in l2 is not the shortest one to any class.
        (2, "l2", ["0.1", "0.2", "0.4", "0.8", "1.732"]),
    ],
)
def test_every_attack_agrees_on_a_linear_model(n_classes, norm, radii):
    model = linear(n_classes)
    x, y, robust = examples(model, 16, norm=norm)
    n = 12
    found = strong.measure(attacked(model, x, y, norm=norm), n)
    share = robust[:n].float().mean().item()
    assert found["n"] == n
    assert found["pgd"] == found["converged"] == found["autoattack"] == pytest.approx(share)
    assert found["square_alone"] == 0
    assert found["commonest"] == pytest.approx(
        max((y[:n] == label).float().mean().item() for label in range(n_classes))
    )
    assert found["robust"] == strong.pack(robust)
    accuracies = [found[f"eps.{eps}"] for eps in radii]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[1] == pytest.approx(share) and accuracies[-1] == 0


class Steps(nn.Module):
    """Class 1 where 256 pixels, rounded to 16 levels, are brighter than 0.47 on average: no gradient anywhere.

    Darkening all by 0.1 takes a grey image down two levels, to 0.375; noise within 0.1 takes its mean nowhere.
    """

    def forward(self, x):
        brightness = ((x * 16).round() / 16).mean((1, 2, 3))
        return torch.stack([torch.zeros_like(brightness), 100 * (brightness - 0.47)], 1)


def test_square_fools_a_model_without_gradients_and_pgd_does_not():
    x, y = torch.full((4, 1, 16, 16), 0.5), torch.ones(4, dtype=torch.long)
    found = strong.measure(attacked(Steps(), x, y), 4)
    assert found["converged"] == found["square_alone"] == 1 and found["autoattack"] == 0


def test_radii_end_at_the_one_that_makes_every_image_grey():
    model = linear(4)
    x, y, _ = examples(model, 4)
    names = [name for name in strong.measure(attacked(model, x, y, eps=0.3), 2) if name.startswith("eps.")]
    assert names == ["eps.0.15", "eps.0.3", "eps.0.5"]


def test_autoattack_leaves_nothing_behind():
    model = resnet(8, 10, 3, "batchnorm", generator=torch.Generator().manual_seed(0))
    model = model.to(memory_format=torch.channels_last).train()
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    y = model.eval()(x).argmax(1)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    strong.under_autoattack(attacked(model, x, y), ("apgd-ce",))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_normalises_by_the_batch_is_attacked_in_whole_batches(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        strong,
        "autoattack",
        lambda model, x, y, parts, eps, seed, norm: sizes.append((parts, len(x))) or x,
    )
    model = nn.Sequential(BatchNorm2d(1, eval_statistics="batch"), nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(10, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    strong.measure(attacked(model, x, torch.zeros(10, dtype=torch.long)), 6)
    assert sizes == [(strong.WHITE_BOX, 6), (("square",), 6)]


@pytest.mark.parametrize(("height", "width"), [(2, 2), (5, 5), (8, 8), (12, 12), (24, 24), (18, 30), (32, 48)])
def test_square_in_l2_attacks_images_of_any_size_within_its_radius(height, width):
    model = nn.Sequential(nn.Flatten(), nn.Linear(height * width, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(height * width), torch.ones(height * width)]))
        model[1].bias.copy_(torch.tensor([0.0, -0.5 * height * width]))
    x, y = torch.full((2, 1, height, width), 0.55), torch.ones(2, dtype=torch.long)
    x[1] = 0.9
    eps = 3 * 0.05 * (height * width) ** 0.5  # all pixels have to go 0.05 down, at the least
    found = strong.autoattack(model, x, y, ("square",), eps, 0, "l2")
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
    assert (found - x).flatten(1).norm(dim=1).max() <= eps * (1 + 1e-5)
    assert model(found).argmax(1).tolist() == [0, 1]


def test_no_examples_need_no_attack():
    model = linear(4)
    empty = torch.zeros(0, 3, 2, 2), torch.zeros(0, dtype=torch.long)
    assert len(strong.under_autoattack(attacked(model, *empty), ("square",))) == 0


def test_square_is_asked_about_all_that_either_of_the_others_left(monkeypatch):
    white, converged, asked = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool(), []

    def under_autoattack(attacked, parts):
        return (
            white if parts == strong.WHITE_BOX else asked.append(len(attacked.y)) or torch.zeros(len(attacked.y)).bool()
        )

    monkeypatch.setattr(strong, "under_autoattack", under_autoattack)
    monkeypatch.setattr(strong, "under_pgd", lambda attacked, *more: converged)
    found = strong.measure(attacked(linear(2), torch.rand(4, 3, 2, 2), torch.zeros(4).long()), 4)
    assert asked == [3] and found["square_alone"] == 0.5 and found["autoattack"] == 0


def test_converged_is_five_times_the_steps_from_five_starts(monkeypatch):
    seen = []

    def pgd(model, x, y, *, steps, restarts, **settings):
        seen.append((steps, restarts))
        return x

    monkeypatch.setattr(strong, "pgd", pgd)
    monkeypatch.setattr(strong, "under_autoattack", lambda attacked, parts: torch.ones(len(attacked.y)).bool())
    model = linear(4)
    x, y, _ = examples(model, 4)
    strong.measure(attacked(model, x, y), 4)
    assert seen[:2] == [(10, 1), (50, 5)] and set(seen[2:]) == {(10, 1)}
