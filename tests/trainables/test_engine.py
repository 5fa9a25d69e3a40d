import pytest
import torch
from torch import nn

from trainables import engine
from trainables.batch_schedules import batch_sizes, steps_per_epoch
from trainables.config import ConstantBatch, GeometricBatch, LinearBatch, MilestoneBatch, PlateauBatch
from trainables.data import Split

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
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([{"params": model.parameters(), "lr": torch.zeros(()), "lr_factor": 1.0}])
    generator = torch.Generator().manual_seed(0)
    for size in batch_sizes(schedule, EPOCHS, [0.5] * EPOCHS):
        met = []

        def step(model, optimizer, x, y, met=met):
            met.append(y)
            return y.float().mean()

        lrs = [0.1] * steps_per_epoch(len(split), size)
        loss = engine.train_epoch(model, optimizer, step, split, "none", size, lrs, generator)
        yield size, met, loss


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
