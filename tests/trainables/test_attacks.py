from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from trainables.attacks import (
    accuracy,
    ascend,
    fgsm,
    input_gradient,
    l2_steepest,
    pgd,
    project,
    random_start,
    robust_accuracy,
    robust_mask,
    summed_cross_entropy,
)
from trainables.norms import BatchNorm2d

EPS = 8 / 255
NORMS = ["linf", "l2"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def length(delta, norm):
    flat = delta.flatten(1)
    return flat.abs().max(1).values if norm == "linf" else flat.norm(dim=1)


def linear_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    nn.init.normal_(model[1].weight, generator=seeded())
    nn.init.zeros_(model[1].bias)
    return model.eval()


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(labels)


@pytest.fixture(scope="module")
def convnet(digits):
    """A small network trained on all but the last 512 digits: good, not robust."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, y = digits[0][:-512], digits[1][:-512]
    for _ in range(4):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def held_out(digits):
    return digits[0][-512:], digits[1][-512:]


def brute_force(model, x, y, starts, *, eps, steps, step_size, norm):
    """The returned image and robustness by the definition: every iterate of every start, one example at a time."""
    images, robust = [], []
    for i in range(len(x)):
        iterates = []
        for start in starts:
            delta = start[i : i + 1].clone()
            for step in range(steps + 1):
                iterates.append(x[i : i + 1] + delta)
                if step == steps:
                    break
                image = iterates[-1].clone().requires_grad_()
                (grad,) = torch.autograd.grad(F.cross_entropy(model(image), y[i : i + 1]), image)
                if norm == "linf":
                    delta = (delta + step_size * grad.sign()).clamp(-eps, eps)
                else:
                    delta = delta + step_size * grad / grad.norm()
                    delta = delta * min(1.0, eps / delta.norm().item())
                delta = (x[i : i + 1] + delta).clamp(0, 1) - x[i : i + 1]
        fooling = [image for image in iterates if model(image).argmax() != y[i]]
        images.append(fooling[-1] if fooling else iterates[-1])
        robust.append(not fooling)
    return torch.cat(images), torch.tensor(robust)


def test_pgd_reaches_the_worst_corner_of_a_linear_model():
    model = linear_model()
    x, y = torch.full((4, 3, 2, 2), 0.5), torch.tensor([0, 1, 0, 1])
    weight = model[1].weight.detach()
    corner = EPS * (weight[1 - y] - weight[y]).sign().view_as(x)
    for start in (None, seeded()):
        torch.testing.assert_close(pgd(model, x, y, eps=EPS, generator=start) - x, corner)
    torch.testing.assert_close(fgsm(model, x, y, eps=EPS) - x, corner)


def test_pgd_in_l2_goes_straight_against_a_linear_models_margin():
    model = linear_model()
    x, y = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 0])
    with torch.no_grad():
        model[1].bias[0] += 4 - model(x)[0] @ torch.tensor([1.0, -1.0])  # a margin that no iterate crosses
    direction = (model[1].weight[1] - model[1].weight[0]).detach()
    worst = (0.3 * direction / direction.norm()).view(1, 3, 2, 2).expand_as(x)
    torch.testing.assert_close(pgd(model, x, y, eps=0.3, norm="l2") - x, worst)
    torch.testing.assert_close(fgsm(model, x, y, eps=0.3, norm="l2") - x, worst)


def test_l2_direction_survives_gradients_whose_squares_underflow():
    grad = torch.randn(3, 2, 4, 4, generator=seeded())
    expected = grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(l2_steepest(1e-30 * grad), expected)
    assert not l2_steepest(0 * grad).any()


def test_an_examples_gradient_does_not_depend_on_its_batch(convnet, held_out):
    x, y = held_out[0][:8], held_out[1][:8]
    together, logits = input_gradient(convnet, x, summed_cross_entropy(y))
    alone = [input_gradient(convnet, x[i : i + 1], summed_cross_entropy(y[i : i + 1]))[0] for i in range(8)]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(logits, convnet(x).detach())


@pytest.mark.parametrize("norm", NORMS)
class TestEveryNorm:
    def test_images_stay_in_the_ball_and_in_the_box(self, norm, convnet, held_out):
        x, y = held_out[0][:64], held_out[1][:64]
        for attack in (
            partial(fgsm, eps=0.2),
            partial(fgsm, eps=0.2, generator=seeded()),
            partial(pgd, eps=0.2),
            partial(pgd, eps=0.2, step_size=1.0, restarts=2, generator=seeded()),
        ):
            images = attack(convnet, x, y, norm=norm)
            assert images.shape == x.shape
            assert images.min() >= 0 and images.max() <= 1
            assert length(images - x, norm).max() <= 0.2 + 1e-6
            assert length(images - x, norm).max() > 0.1

    def test_projection_leaves_what_is_allowed_and_shortens_the_rest(self, norm):
        x = torch.full((2, 1, 2, 2), 0.5)
        delta = torch.tensor([0.1, 0.0, -0.1, 0.05]).view(1, 1, 2, 2)
        torch.testing.assert_close(project(delta, x[:1], 0.4, norm), delta)
        far = torch.stack([10 * delta[0], delta[0]])
        assert length(project(far, x, 0.12, norm), norm)[0] == pytest.approx(0.12)

    def test_one_step_climbs_by_the_step_size(self, norm):
        x = torch.full((3, 1, 4, 4), 0.5)
        delta = ascend(torch.zeros_like(x), torch.randn(3, 1, 4, 4), x, eps=0.3, step_size=0.1, norm=norm)
        torch.testing.assert_close(length(delta, norm), torch.full((3,), 0.1))

    def test_random_starts_fill_the_ball(self, norm):
        model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
        nn.init.zeros_(model[1].weight)  # no gradient: images are the starts
        x = torch.full((4000, 2, 1, 1), 0.5)
        images = pgd(model, x, torch.zeros(4000, dtype=torch.long), eps=0.4, norm=norm, generator=seeded())
        radius = length(images - x, norm) / 0.4
        # Uniform in two dimensions: P(radius < r) = r^2, for a disc as for a square.
        for r in (0.25, 0.5, 0.75):
            assert (radius < r).float().mean() == pytest.approx(r**2, abs=0.03)
        assert (images - x).mean((0, 2, 3)).abs().max() < 0.02

    def test_radius_zero_returns_the_images(self, norm, convnet, held_out):
        x, y = held_out[0][:16], held_out[1][:16]
        for generator in (None, seeded()):
            assert torch.equal(pgd(convnet, x, y, eps=0, norm=norm, generator=generator), x)
            assert torch.equal(fgsm(convnet, x, y, eps=0, norm=norm, generator=generator), x)

    @pytest.mark.parametrize("drop_fooled", [False, True])
    def test_every_iterate_counts_as_brute_force_says(self, norm, drop_fooled, convnet, held_out):
        x, y = held_out[0][:40], held_out[1][:40].clone()
        y[:3] = (y[:3] + 1) % 10  # misclassified from the start
        # Long steps overshoot: many an example is fooled by an early iterate and not by the last.
        eps = {"linf": 0.1, "l2": 0.6}[norm]
        rule = {"eps": eps, "steps": 4, "step_size": 1.5 * eps, "norm": norm}
        images = pgd(convnet, x, y, drop_fooled=drop_fooled, **rule)
        expected, robust = brute_force(convnet, x, y, [torch.zeros_like(x)], **rule)
        assert 5 < robust.sum() < 35
        assert torch.equal(convnet(images).argmax(1) == y, robust)
        if not drop_fooled:
            torch.testing.assert_close(images, expected)

    @pytest.mark.parametrize("restarts", [1, 3])
    def test_dropping_fooled_examples_gives_the_same_robust_set(self, norm, restarts, convnet, held_out):
        eps = {"linf": 0.08, "l2": 0.5}[norm]
        masks = [
            robust_mask(
                convnet,
                *held_out,
                partial(pgd, eps=eps, norm=norm, restarts=restarts, generator=seeded(), drop_fooled=drop_fooled),
                batch_size=512,
            )
            for drop_fooled in (False, True)
        ]
        assert 0.1 < masks[0].float().mean() < 0.9
        assert torch.equal(*masks)


def test_restarts_count_together(convnet, held_out):
    x, y = held_out[0][:32], held_out[1][:32]
    generator = seeded()
    starts = [torch.empty_like(x).uniform_(-0.1, 0.1, generator=generator) for _ in range(3)]
    starts = [(x + start).clamp(0, 1) - x for start in starts]
    images = pgd(convnet, x, y, eps=0.1, steps=2, step_size=0.03, restarts=3, generator=seeded())
    expected, robust = brute_force(convnet, x, y, starts, eps=0.1, steps=2, step_size=0.03, norm="linf")
    torch.testing.assert_close(images, expected)
    assert torch.equal(convnet(images).argmax(1) == y, robust)


def test_restarts_without_a_generator_begin_at_the_image_and_then_anywhere(convnet, held_out):
    x, y = held_out[0][:64], held_out[1][:64]
    settings = {"eps": 0.1, "steps": 1, "step_size": 0.0}  # looks at the starts alone
    starts = []
    with torch.random.fork_rng():
        torch.manual_seed(7)
        starts += [pgd(convnet, x, y, restarts=2, **settings) for _ in range(2)]
        torch.manual_seed(7)
        starts += [pgd(convnet, x, y, restarts=2, **settings)]
    assert torch.equal(starts[0], starts[2]) and not torch.equal(starts[0], starts[1])
    assert torch.equal(pgd(convnet, x, y, **settings), x)


@pytest.mark.parametrize(("name", "norm", "radii"), [("PGD", "linf", (0.05, 0.08, 0.12)), ("PGDL2", "l2", (0.3, 0.6))])
def test_robust_set_lies_within_torchattacks_and_is_at_most_a_point_smaller(name, norm, radii, convnet, held_out):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = held_out
    for eps in radii:
        theirs = getattr(torchattacks, name)(convnet, eps=eps, alpha=eps / 4, steps=10, random_start=False)
        last = robust_mask(convnet, x, y, lambda model, x, y, attack=theirs: attack(x, y), batch_size=512)
        every = robust_mask(convnet, x, y, partial(pgd, eps=eps, steps=10, norm=norm), batch_size=512)
        assert not (every & ~last).any()
        assert last.float().mean() - every.float().mean() <= 0.01
        assert 0.02 < every.float().mean() < 0.95


def test_attacks_leave_the_model_as_it_was(convnet, held_out):
    x, y = held_out[0][:32], held_out[1][:32]
    convnet[0].weight.grad = torch.full_like(convnet[0].weight, 0.25)
    before = {name: value.clone() for name, value in convnet.state_dict().items()}
    for attack in (partial(fgsm, eps=0.1), partial(pgd, eps=0.1), partial(pgd, eps=0.1, drop_fooled=True)):
        images = attack(convnet, x, y)
        assert not images.requires_grad
    torch.testing.assert_close(dict(convnet.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(convnet[0].weight.grad, torch.full_like(convnet[0].weight, 0.25))
    assert all(parameter.grad is None for parameter in list(convnet.parameters())[1:])
    assert not any(module.training for module in convnet.modules())
    convnet[0].weight.grad = None


def test_attacks_work_where_gradients_are_off(convnet, held_out):
    x, y = held_out[0][:8], held_out[1][:8]
    with torch.no_grad():
        images = pgd(convnet, x, y, eps=0.1)
    assert torch.equal(images, pgd(convnet, x, y, eps=0.1))


def test_measuring_judges_in_eval_mode_and_restores_every_mode():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(0.5), nn.Flatten()))
    model.append(nn.Linear(4 * 36, 3)).train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    x, y = torch.rand(20, 1, 8, 8, generator=seeded()), torch.arange(20) % 3
    seen = []
    model.register_forward_hook(lambda module, *_: seen.extend(m.training for m in module.modules()))
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    accuracy(model, x, y, 8)
    robust_accuracy(model, x, y, partial(pgd, eps=0.1), 8)
    assert seen and not any(seen)
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        accuracy(model, x[:, :, :2], y, 8)
    assert [module.training for module in model.modules()] == modes


def test_accuracies_are_fractions_of_the_examples(convnet, held_out):
    x, y = held_out
    right = convnet(x).argmax(1) == y
    assert accuracy(convnet, x, y, 100) == right.float().mean().item() > 0.8
    attack = partial(pgd, eps=0.08)
    mask = robust_mask(convnet, x, y, attack, 100)
    attacked_right = convnet(attack(convnet, x, y)).argmax(1) == y
    assert torch.equal(mask, right & attacked_right)
    assert robust_accuracy(convnet, x, y, attack, 100) == mask.float().mean().item()


def test_an_attack_that_mends_a_misclassified_image_makes_it_no_more_robust():
    model = nn.Sequential(BatchNorm2d(1, eval_statistics="batch"), nn.Flatten())
    x = torch.tensor([[0.9, 0.1]] * 6).view(6, 1, 1, 2)  # class 0, however normalised
    y = torch.tensor([0, 1, 0, 1, 0, 1])

    def mend(model, images, labels):
        return torch.where(labels[:, None, None, None] == 0, images, images.flip(3))

    assert model.eval()(mend(model, x, y)).argmax(1).tolist() == y.tolist()
    assert robust_mask(model, x, y, mend, 6).tolist() == [True, False] * 3


@pytest.mark.parametrize(("eval_statistics", "attacked"), [("population", 3), ("batch", 6)])
def test_misclassified_examples_are_attacked_only_to_keep_batches_whole(eval_statistics, attacked):
    model = nn.Sequential(BatchNorm2d(1, eval_statistics=eval_statistics), nn.Flatten())
    x = torch.tensor([[0.9, 0.1]] * 6).view(6, 1, 1, 2)  # class 0, however normalised
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    sizes = []

    def attack(model, images, labels):
        sizes.append(len(images))
        return images

    assert robust_mask(model, x, y, attack, 4).tolist() == [True, False] * 3
    assert sum(sizes) == attacked
    assert sizes == {"population": [3], "batch": [4, 2]}[eval_statistics]


def test_a_model_that_is_never_right_needs_no_attack():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.constant_(model[1].weight, float("nan"))
    x, y = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])
    assert accuracy(model, x, y, 2) == 0
    assert robust_accuracy(model, x, y, partial(pgd, eps=0.1), 2) == 0


def test_mistaken_arguments_are_refused():
    model, x, y = linear_model(), torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    for attack in (fgsm, pgd):
        with pytest.raises(ValueError, match=r"'l1'.*l2.*linf"):
            attack(model, x, y, eps=0.1, norm="l1")
        for eps in (-0.1, float("nan")):
            with pytest.raises(ValueError, match=f"eps {eps} given"):
                attack(model, x, y, eps=eps)
    with pytest.raises(ValueError, match="no examples given"):
        robust_accuracy(model, x[:0], y[:0], pgd, 2)
    with pytest.raises(ValueError, match="steps 0"):
        pgd(model, x, y, eps=0.1, steps=0)
    for whole in (linear_model().train(), nn.Sequential(BatchNorm2d(3, "batch"), linear_model()).eval()):
        with pytest.raises(ValueError, match="drop_fooled"):
            pgd(whole, x, y, eps=0.1, drop_fooled=True)


def test_fgsm_takes_one_step_of_length_eps_from_its_random_start():
    model = linear_model()
    x, y = torch.full((4, 3, 2, 2), 0.5), torch.tensor([0, 1, 0, 1])
    weight = model[1].weight.detach()
    uphill = (weight[1 - y] - weight[y]).sign().view_as(x)
    start = random_start(x, EPS, "linf", seeded())
    moved = fgsm(model, x, y, eps=EPS, generator=seeded()) - x
    torch.testing.assert_close(moved, (start + EPS * uphill).clamp(-EPS, EPS))
    assert (moved.abs() < 0.9 * EPS).any()
