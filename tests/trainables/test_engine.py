import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainables import engine
from trainables.batch_schedules import batch_sizes, steps_per_epoch
from trainables.config import ConstantBatch, GeometricBatch, LinearBatch, MilestoneBatch, PlateauBatch
from trainables.cuda_graphs import Graphs
from trainables.data import Split
from trainables.resnet import parameter_groups, resnet
from trainables.sgd import SGD

N, EPOCHS = 1280 + 7, 10  # not a multiple of any batch size
SPLIT = Split(torch.arange(N, dtype=torch.int64).view(N, 1, 1, 1).remainder(256).byte(), torch.arange(N))

SCHEDULES = [
    ConstantBatch(size=100),
    GeometricBatch(first=8, last=128),
    LinearBatch(first=10, last=500),
    MilestoneBatch(sizes=(64, 2000), milestones=(3,)),
    PlateauBatch(first=16, last=64, patience=1),
]


def epochs_of(schedule, split=SPLIT):
    """Labels of each batch of each epoch, as the training step meets them."""
    met = []

    def step(model, optimizer, x, y):
        met.append(y)
        return y.float().mean()

    trainer = make_trainer(nn.Linear(1, 1), step, split)
    for size in batch_sizes(schedule, EPOCHS, [0.5] * EPOCHS):
        trainer.prepare(size)
        met.clear()
        loss = trainer.train_epoch(size, [0.1] * steps_per_epoch(len(split), size))
        yield size, list(met), loss


def make_trainer(model, step, split, augmentation="none", **settings):
    optimizer = SGD(model, momentum=0.9, nesterov=False, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    graphs = Graphs(torch.device("cpu"), [generator])
    return engine.Trainer(model, optimizer, step, split, augmentation, generator, graphs, **settings)


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.arange(n) % 10)


def natural(model, optimizer, x, y):
    return engine.train_step(model, optimizer, lambda model, x, y: x, x, y)


def tensors_of(trainer):
    return [tensor.detach().clone() for tensor in [*trainer._state(), trainer.generator.get_state()]]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
def test_every_epoch_meets_each_training_image_exactly_once(schedule):
    for size, met, _ in epochs_of(schedule):
        assert sorted(torch.cat(met).tolist()) == list(range(N))
        assert all(len(y) == size for y in met[:-1]) and 0 < len(met[-1]) <= size


def test_the_order_differs_from_epoch_to_epoch():
    orders = [torch.cat(met).tolist() for _, met, _ in epochs_of(ConstantBatch(size=100))]
    assert orders[0] != orders[1]


def test_the_epochs_loss_is_the_mean_over_examples_whatever_the_last_batch_holds():
    for _, _, loss in epochs_of(ConstantBatch(size=100)):
        assert loss.item() == pytest.approx((N - 1) / 2)


def test_equal_stages_from_8_to_128_take_the_steps_that_their_sizes_predict():
    n_steps = [len(met) for _, met, _ in epochs_of(GeometricBatch(first=8, last=128))]
    assert n_steps == [161, 161, 81, 81, 41, 41, 21, 21, 11, 11]
    constant = {size: sum(len(met) for _, met, _ in epochs_of(ConstantBatch(size=size))) for size in (8, 128)}
    # Were a step's time the same at each size, growing would take 5.7 times as long as 128, and 8 14.6 times.
    assert sum(n_steps) / constant[128] == pytest.approx(630 / 110)
    assert constant[8] / constant[128] == pytest.approx(1610 / 110)


def test_a_batch_is_channels_last_in_pixel_units():
    x, y = engine.batch(Split(torch.full((4, 3, 2, 2), 51, dtype=torch.uint8), torch.arange(4)), torch.tensor([2, 0]))
    assert y.tolist() == [2, 0] and x.shape == (2, 3, 2, 2)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x, torch.full((2, 3, 2, 2), 0.2))


def test_an_epoch_equals_plain_loops_over_the_same_batches():
    split, lrs = images(22), [0.1, 0.2, 0.05]
    model, reference = (resnet(8, 10, 3, "fixup", generator=torch.Generator().manual_seed(0)) for _ in range(2))
    loss = make_trainer(model, natural, split).train_epoch(8, lrs)

    order = torch.randperm(22, generator=torch.Generator().manual_seed(0))
    groups = [{**group, "lr": 0.0} for group in parameter_groups(reference)]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
    reference.train()
    losses = []
    for lr, index in zip(lrs, order.split(8), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        optimizer.zero_grad()
        value = F.cross_entropy(reference(split.images[index] / 255), split.labels[index])
        value.backward()
        optimizer.step()
        losses.append(value.item() * len(index))
    assert loss.item() == pytest.approx(sum(losses) / 22, rel=1e-5)
    torch.testing.assert_close(dict(model.state_dict()), dict(reference.state_dict()))


@pytest.mark.parametrize("batch_size", [8, 32])  # more than there are, too
def test_preparing_and_timing_change_nothing(batch_size):
    split = images(22)
    trainer = make_trainer(resnet(8, 10, 3, "batchnorm"), natural, split, "crop_flip")
    trainer.train_epoch(6, [0.1] * 4)
    before, addresses = tensors_of(trainer), [tensor.data_ptr() for tensor in trainer._state()]
    trainer.prepare(batch_size)
    assert trainer.seconds(batch_size, 5) > 0
    after = tensors_of(trainer)
    trainer._rewind()
    for mine, theirs in zip(after, before, strict=True):
        assert mine.dtype == torch.int64 or torch.equal(mine, theirs)
    assert [tensor.data_ptr() for tensor in trainer._state()] == addresses


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight_and_shows_in_the_epochs_mean(bad):
    split = images(12)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    calls = []

    def second_is_bad(model, optimizer, x, y):
        calls.append(copies(model, optimizer))
        loss = F.cross_entropy(model(x), y)
        return engine.update(optimizer, loss * bad if len(calls) == 2 else loss)

    def copies(model, optimizer):
        return [tensor.detach().clone() for tensor in [*model.parameters(), *optimizer.momentum]]

    trainer = make_trainer(model, second_is_bad, split)
    trainer.prepare(4)
    calls.clear()
    loss = trainer.train_epoch(4, [0.1] * 3)
    before, between, after = calls
    assert not any(torch.equal(*pair) for pair in zip(before, between, strict=True))
    assert all(torch.equal(*pair) for pair in zip(between, after, strict=True))
    assert not loss.isfinite()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_momentum_loads_into_the_tensors_that_are_there():
    split = images(12)
    trained, fresh = (make_trainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), natural, split) for _ in range(2))
    trained.train_epoch(4, [0.1] * 3)
    addresses = [buffer.data_ptr() for buffer in fresh.optimizer.momentum]
    fresh.optimizer.load_state_dict(trained.optimizer.state_dict())
    assert [buffer.data_ptr() for buffer in fresh.optimizer.momentum] == addresses
    pairs = zip(*(t.optimizer.momentum for t in (fresh, trained)), strict=True)
    assert all(torch.equal(*pair) and pair[0].any() for pair in pairs)


def test_no_gradient_outlives_a_step():
    trainer = make_trainer(resnet(8, 10, 3, "batchnorm"), natural, images(12))
    trainer.train_epoch(4, [0.1] * 3)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_bf16_computes_in_bfloat16_between_float32_images_logits_and_weights():
    model = resnet(8, 10, 3, "batchnorm")
    seen = []
    model.stages[0].conv1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer = make_trainer(model, natural, images(12), precision="bf16")
    x, _ = engine.batch(trainer.split, torch.arange(12))
    assert trainer.computing(x).dtype == torch.float32
    assert trainer.train_epoch(4, [0.01] * 3).isfinite()
    assert set(seen) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_the_precision_of_convolutions_is_set_inside_and_restored():
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    for precision, inside in {"fp32": "ieee", "tf32": "tf32", "bf16": "tf32"}.items():
        with engine.convolving_in(precision):
            assert (convolutions.fp32_precision, products.fp32_precision) == (inside, "ieee")
        assert (convolutions.fp32_precision, products.fp32_precision) == before


def test_each_pass_augments_the_images_as_they_were_read(monkeypatch):
    split, seen = images(12), []
    before = split.images.clone()
    monkeypatch.setattr(engine, "augment", lambda images, *_: seen.append(images.clone()) or 255 - images)
    trainer = make_trainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), natural, split, "crop")
    for _ in range(2):
        trainer.train_epoch(6, [0.1] * 2)
    assert torch.equal(split.images, before) and all(torch.equal(images, before) for images in seen) and len(seen) == 2


def test_timed_steps_bear_their_share_of_what_a_pass_begins_with(monkeypatch):
    trainer, clock = make_trainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), natural, images(12)), [0.0]
    trainer.prepare(4)

    def lasts(seconds):
        return lambda _: clock.append(clock[-1] + seconds)

    monkeypatch.setattr(trainer, "_now", lambda: clock[-1])
    monkeypatch.setattr(trainer, "_begin", lasts(6.0))
    monkeypatch.setattr(trainer, "_run", lasts(1.0))
    assert trainer.seconds(4, 5) == pytest.approx(5 * 1.0 + 5 * 4 / 12 * 6.0)


def test_a_model_left_in_eval_mode_is_trained_in_train_mode():
    modes, model = [], nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).eval()
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    make_trainer(model, natural, images(12)).train_epoch(12, [0.1])
    assert modes and all(modes)
