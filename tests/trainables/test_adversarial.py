from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainables.adversarial import RECIPES, FreeStep, craft, step
from trainables.config import AttackNorm, Training, TrialConfig
from trainables.engine import train_step
from trainables.resnet import resnet
from trainables.sgd import SGD

EPS, LR = 0.1, 0.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_model(n_classes=3):
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, n_classes))
    nn.init.normal_(model[1].weight, generator=seeded())
    nn.init.zeros_(model[1].bias)
    return model


def with_optimizer(model, **settings):
    optimizer = SGD(model, **{"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **settings})
    optimizer.set_lr(LR)
    return model, optimizer


def batch(n=4):
    x = torch.rand(n, 2, 2, 2, generator=seeded(1))
    return x, torch.arange(n) % 3


def softmax_gradients(model, x, y):
    """Mean loss, weight gradient and image gradient of a linear model's cross-entropy, in closed form."""
    weight, flat = model[1].weight.detach(), x.flatten(1)
    p = (flat @ weight.T + model[1].bias.detach()).softmax(1)
    loss = -p[torch.arange(len(y)), y].log().mean()
    error = (p - F.one_hot(y, p.shape[1])) / len(y)
    return loss, error.T @ flat, (error @ weight).view_as(x)


def config(training, **fields):
    return TrialConfig(training=training, **{"eps": EPS, **fields})


def test_every_training_mode_has_a_recipe():
    assert set(RECIPES) == set(get_args(Training))


@pytest.mark.parametrize("training", sorted(RECIPES))
class TestEveryRecipe:
    def test_returns_a_detached_scalar_and_moves_the_weights(self, training):
        model, optimizer = with_optimizer(resnet(8, 10, 1, "fixup", generator=seeded()))
        x, y = torch.rand(6, 1, 8, 8, generator=seeded()), torch.arange(6)
        before = model.classifier.bias.detach().clone()
        loss = step(config(training, pgd_steps=2), seeded())(model, optimizer, x, y)
        assert loss.shape == () and not loss.requires_grad and loss.isfinite()
        assert not torch.equal(model.classifier.bias, before)

    def test_same_generator_same_weights(self, training):
        ends = []
        for _ in range(2):
            model, optimizer = with_optimizer(linear_model())
            recipe = step(config(training, pgd_steps=2), seeded(5))
            for size in (4, 4, 3):
                recipe(model, optimizer, *batch(size))
            ends.append(model[1].weight.detach())
        assert torch.equal(*ends)

    def test_leaves_every_module_in_train_mode(self, training):
        model, optimizer = with_optimizer(resnet(8, 10, 1, "batchnorm", generator=seeded()))
        step(config(training, pgd_steps=1), seeded())(model, optimizer, torch.rand(4, 1, 8, 8), torch.arange(4))
        assert all(module.training for module in model.modules())

    def test_lowers_its_loss_on_one_batch(self, training):
        model, optimizer = with_optimizer(linear_model())
        recipe = step(config(training, pgd_steps=3, eps=0.01), seeded())
        x, y = batch(12)
        losses = [recipe(model, optimizer, x, y).item() for _ in range(15)]
        assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("training", ["pgd", "fgsm", "free"])
def test_without_a_radius_adversarial_training_is_natural(training):
    weights = []
    for recipe in ("natural", training):
        model, optimizer = with_optimizer(linear_model())
        step(config(recipe, eps=0.0, free_replays=1), seeded())(model, optimizer, *batch())
        weights.append(model[1].weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_natural_step_is_one_gradient_step():
    model, optimizer = with_optimizer(linear_model())
    x, y = batch()
    expected_loss, gradient, _ = softmax_gradients(model, x, y)
    expected = model[1].weight.detach() - LR * gradient
    loss = step(config("natural"), seeded())(model, optimizer, x, y)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(model[1].weight.detach(), expected)


def test_train_step_trains_on_what_the_attack_finds():
    model, optimizer = with_optimizer(linear_model())
    x, y = batch()
    expected_loss, gradient, _ = softmax_gradients(model, 1 - x, y)
    expected = model[1].weight.detach() - LR * gradient
    loss = train_step(model, optimizer, lambda model, images, labels: 1 - images, x, y)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(model[1].weight.detach(), expected)


def uniform_start(x, generator, attack_norm):
    if attack_norm == "linf":
        start = torch.empty_like(x).uniform_(-EPS, EPS, generator=generator)
    else:  # a normal direction, then a radius whose 8th power (there are 8 pixels) is uniform
        direction = torch.empty_like(x).normal_(generator=generator).flatten(1)
        radius = EPS * torch.rand(len(x), 1, generator=generator) ** (1 / 8)
        start = (radius * direction / direction.norm(dim=1, keepdim=True)).view_as(x)
    return (x + start).clamp(0, 1) - x


def moved(delta, gradient, step_size, attack_norm):
    if attack_norm == "linf":
        return (delta + step_size * gradient.sign()).clamp(-EPS, EPS)
    gradient, flat = gradient.flatten(1), delta.flatten(1)
    flat = flat + step_size * gradient / gradient.norm(dim=1, keepdim=True)
    length = flat.norm(dim=1, keepdim=True)
    return torch.where(length > EPS, flat * EPS / length, flat).view_as(delta)


def ascended(x, delta, gradient, step_size, attack_norm):
    return (x + moved(delta, gradient, step_size, attack_norm)).clamp(0, 1) - x


def climbed(model, x, y, delta, n_steps, step_size, attack_norm):
    for _ in range(n_steps):
        delta = ascended(x, delta, softmax_gradients(model, x + delta, y)[2], step_size, attack_norm)
    return delta


ATTACK_NORMS = pytest.mark.parametrize("attack_norm", get_args(AttackNorm))


@ATTACK_NORMS
@pytest.mark.parametrize(
    ("training", "fields", "n_steps", "step_size"),
    [
        ("fgsm", {}, 1, 1.25 * EPS),
        ("fgsm", {"step_size": 0.03}, 1, 0.03),
        ("pgd", {"pgd_steps": 5}, 5, 2.5 * EPS / 5),
        ("pgd", {"pgd_steps": 3, "step_size": 0.02}, 3, 0.02),
    ],
)
def test_fgsm_and_pgd_train_on_the_last_iterate_from_a_uniform_start(training, fields, n_steps, step_size, attack_norm):
    model, optimizer = with_optimizer(linear_model())
    x, y = batch()
    delta = climbed(model, x, y, uniform_start(x, seeded(3), attack_norm), n_steps, step_size, attack_norm)
    expected_loss, gradient, _ = softmax_gradients(model, x + delta, y)
    expected = model[1].weight.detach() - LR * gradient
    loss = step(config(training, attack_norm=attack_norm, **fields), seeded(3))(model, optimizer, x, y)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(model[1].weight.detach(), expected)


@pytest.mark.parametrize(("training", "n_forwards"), [("natural", 1), ("fgsm", 2), ("pgd", 5), ("free", 3)])
def test_each_gradient_costs_one_forward_pass_in_train_mode(training, n_forwards):
    model, optimizer = with_optimizer(linear_model())
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    step(config(training, pgd_steps=4, free_replays=3), seeded())(model, optimizer, *batch())
    assert modes == [True] * n_forwards


def free_by_hand(batches, step_size, replays, attack_norm):
    """Algorithm 1 on a linear model, its gradients in closed form, on images that are clipped."""
    model = linear_model()
    carried, mean_losses = torch.zeros_like(batches[0][0]), []
    for x, y in batches:
        losses = []
        for _ in range(replays):
            delta = carried[: len(x)].clone()
            images = (x + delta).clamp(0, 1)
            loss, weight_gradient, image_gradient = softmax_gradients(model, images, y)
            p = model(images).softmax(1).detach()
            bias_gradient = (p - F.one_hot(y, 3)).mean(0)
            carried[: len(x)] = moved(delta, image_gradient, step_size, attack_norm)
            model[1].weight.data -= LR * weight_gradient
            model[1].bias.data -= LR * bias_gradient
            losses.append(loss)
        mean_losses.append(torch.stack(losses).mean())
    return model, mean_losses


@ATTACK_NORMS
@pytest.mark.parametrize("step_size", [None, 0.04])
def test_free_carries_its_perturbation_through_replays_and_batches(step_size, attack_norm):
    batches = [batch(4), batch(4), batch(3)]
    batches[1] = (batches[0][0].round(), batches[1][1])  # black and white: half of what is carried leaves the box
    expected, expected_losses = free_by_hand(batches, step_size or EPS, 3, attack_norm)
    model, optimizer = with_optimizer(linear_model())
    recipe = step(config("free", free_replays=3, step_size=step_size, attack_norm=attack_norm), seeded())
    losses = [recipe(model, optimizer, x, y) for x, y in batches]
    torch.testing.assert_close(losses, expected_losses)
    torch.testing.assert_close(dict(model.state_dict()), dict(expected.state_dict()))


def test_free_keeps_its_perturbation_in_place():
    model, optimizer = with_optimizer(linear_model())
    recipe = FreeStep(EPS, EPS, 2, largest=4, norm="linf")
    recipe(model, optimizer, *batch(4))
    address = recipe.delta.data_ptr()
    for size in (4, 2, 4):
        recipe(model, optimizer, *batch(size))
        assert recipe.delta.data_ptr() == address and len(recipe.delta) == 4
    assert recipe.delta.abs().max() == pytest.approx(EPS)


def test_free_carries_on_what_one_images_box_cuts_off():
    model, optimizer = with_optimizer(linear_model())
    recipe = FreeStep(EPS, 0.0, 1, largest=2, norm="linf")
    x, y = batch(2)
    recipe.carry(x)[0].fill_(-EPS)
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    recipe(model, optimizer, torch.zeros_like(x), y)
    recipe(model, optimizer, torch.ones_like(x), y)
    torch.testing.assert_close(seen, [torch.zeros_like(x), torch.full_like(x, 1 - EPS)])


def trades_by_hand(model, x, y, noise, n_steps, step_size, beta, attack_norm):
    """The published recipe with ordinary backward passes; returns loss and gradients."""

    def kl(images):
        clean = model(x).softmax(1)
        return (clean * (clean.log() - model(images).softmax(1).log())).sum()

    images = x + noise
    for _ in range(n_steps):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(kl(images), images)
        images = (x + ascended(x, images.detach() - x, gradient, step_size, attack_norm)).detach()
    loss = F.cross_entropy(model(x), y) + beta * kl(images) / len(x)
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))


@ATTACK_NORMS
@pytest.mark.parametrize(("beta", "step_size"), [(0.0, None), (6.0, None), (6.0, 0.005)])
def test_trades_equals_the_published_recipe(beta, step_size, attack_norm):
    model, optimizer = with_optimizer(linear_model())
    x, y = batch()
    noise = 0.001 * torch.empty_like(x).normal_(generator=seeded(4))
    expected_loss, gradients = trades_by_hand(model, x, y, noise, 4, step_size or 2.5 * EPS / 4, beta, attack_norm)
    expected = [p.detach() - LR * g for p, g in zip(model.parameters(), gradients, strict=True)]
    fields = {"pgd_steps": 4, "trades_beta": beta, "step_size": step_size, "attack_norm": attack_norm}
    recipe = step(config("trades", **fields), seeded(4))
    loss = recipe(model, optimizer, x, y)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close([p.detach() for p in model.parameters()], expected)


def test_trades_attacks_in_eval_mode_and_trains_in_train_mode():
    model, optimizer = with_optimizer(linear_model())
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    step(config("trades", pgd_steps=3), seeded())(model, optimizer, *batch())
    assert modes == [False] * 4 + [True] * 2


def test_rates_are_set_in_place_and_follow_each_groups_factor():
    model, optimizer = with_optimizer(resnet(8, 10, 1, "fixup"), momentum=0.9, nesterov=True, weight_decay=1e-3)
    addresses = [rate.data_ptr() for rate in optimizer.rates]
    optimizer.set_lr(0.25)
    assert [rate.data_ptr() for rate in optimizer.rates] == addresses
    assert [rate.item() for rate in optimizer.rates] == pytest.approx([0.25, 0.025])
    assert all(rate.dtype == torch.float32 for rate in optimizer.rates)
    assert sum(len(group["params"]) for group in optimizer.groups) == len(list(model.parameters()))


def test_nothing_moves_before_a_rate_is_set():
    model = linear_model()
    optimizer = SGD(model, momentum=0.9, nesterov=False, weight_decay=0.1)
    train_step(model, optimizer, lambda model, x, y: x, *batch())
    torch.testing.assert_close(dict(model.state_dict()), dict(linear_model().state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_updates_equal_torchs_plain_sgd(nesterov):
    settings = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01}
    ours, optimizer = with_optimizer(linear_model(), **settings)
    theirs = linear_model()
    reference = torch.optim.SGD(theirs.parameters(), lr=LR, foreach=False, fused=False, **settings)
    for _ in range(4):
        train_step(ours, optimizer, lambda model, x, y: x, *batch())
        x, y = batch()
        reference.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        reference.step()
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


@ATTACK_NORMS
@pytest.mark.parametrize("step_size", [None, 0.02])
def test_crafted_images_are_where_pgd_ends(step_size, attack_norm):
    model, (x, y) = linear_model(), batch()
    start = uniform_start(x, seeded(3), attack_norm)
    expected = x + climbed(model, x, y, start, 3, step_size or 2.5 * EPS / 3, attack_norm)
    found = craft(model, x, y, norm=attack_norm, eps=EPS, steps=3, step_size=step_size, generator=seeded(3))
    torch.testing.assert_close(found, expected)


def test_images_are_crafted_in_eval_mode():
    model, (x, y), modes = linear_model(), batch(), []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    craft(model, x, y, norm="linf", eps=EPS, steps=3, generator=seeded())
    assert modes == [False] * 3 and model.training


def test_static_step_takes_its_images_as_they_are():
    weights = []
    for recipe in ("natural", "static"):
        model, optimizer = with_optimizer(linear_model())
        step(config(recipe, pgd_steps=2), seeded())(model, optimizer, *batch())
        weights.append(model[1].weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=0)
