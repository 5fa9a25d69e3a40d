import pytest
import torch
from torch import nn

from trainables.norms import NORMS, BatchNorm2d, RobustNorm2d, norm, uses_batch_statistics

VARIANTS = [
    ("batchnorm", "population"),
    ("batchnorm", "batch"),
    ("robustnorm", "population"),
    ("robustnorm", "batch"),
    ("groupnorm", "population"),
]


@pytest.fixture
def x():
    return torch.randn(6, 16, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1


def robustnorm_by_channel(x, layer, mean=None, spread=None):
    """The published formula, a channel at a time."""
    y = torch.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c]
        m = values.mean() if mean is None else mean[c]
        r = values.max() - values.min() if spread is None else spread[c]
        y[:, c] = (values - m) / r**layer.power * layer.weight[c] + layer.bias[c]
    return y


def with_random_affine(layer):
    generator = torch.Generator().manual_seed(1)
    nn.init.normal_(layer.weight, generator=generator)
    nn.init.normal_(layer.bias, generator=generator)
    return layer


@pytest.mark.parametrize("power", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_robustnorm_with_batch_statistics_equals_the_formula(x, power, training):
    layer = with_random_affine(RobustNorm2d(16, power=power)).train(training)
    torch.testing.assert_close(layer(x), robustnorm_by_channel(x, layer))


def test_robustnorm_with_population_statistics_equals_the_formula(x):
    layer = with_random_affine(RobustNorm2d(16, eval_statistics="population"))
    layer(2 * x)
    expected = robustnorm_by_channel(x, layer, layer.running_mean, layer.running_range)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_robustnorm_running_statistics_follow_batches_in_place(x):
    layer = RobustNorm2d(16, momentum=0.25)
    addresses = layer.running_mean.data_ptr(), layer.running_range.data_ptr()
    layer(x)
    torch.testing.assert_close(layer.running_mean, 0.25 * x.mean((0, 2, 3)))
    spread = x.transpose(0, 1).flatten(1).max(1).values - x.transpose(0, 1).flatten(1).min(1).values
    torch.testing.assert_close(layer.running_range, 0.75 + 0.25 * spread)
    assert (layer.running_mean.data_ptr(), layer.running_range.data_ptr()) == addresses


def test_robustnorm_gradients_are_right():
    layer = with_random_affine(RobustNorm2d(2)).double().eval()
    x = torch.randn(3, 2, 3, 3, dtype=torch.double, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)


def test_robustnorm_of_a_constant_channel_is_zero_and_has_finite_gradients():
    x = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    y = RobustNorm2d(3)(x)
    y.sum().backward()
    torch.testing.assert_close(y, torch.zeros_like(y), atol=1e-5, rtol=0)
    assert x.grad.isfinite().all()


def test_robustnorm_without_affine_has_no_parameters(x):
    layer = RobustNorm2d(16, affine=False)
    assert not list(layer.parameters())
    torch.testing.assert_close(layer(x), RobustNorm2d(16)(x))


def test_batchnorm_equals_torchs(x):
    ours, theirs = with_random_affine(BatchNorm2d(16)), with_random_affine(nn.BatchNorm2d(16))
    for _ in range(3):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_batchnorm_with_batch_statistics_normalises_by_the_inference_batch(x):
    layer = with_random_affine(BatchNorm2d(16, eval_statistics="batch"))
    trained = layer(x)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    torch.testing.assert_close(layer.eval()(x), trained)
    layer(5 * x)
    torch.testing.assert_close(dict(layer.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "eval_statistics"), VARIANTS)
class TestEveryNorm:
    def test_keeps_the_shape(self, name, eval_statistics):
        for channels in (16, 32, 64):
            x = torch.rand(4, channels, 3, 2)
            layer = norm(name, eval_statistics)(channels)
            assert layer(x).shape == layer.eval()(x).shape == x.shape

    def test_eval_mode_changes_no_buffer(self, name, eval_statistics, x):
        layer = norm(name, eval_statistics)(16)
        layer(x)
        before = {key: value.clone() for key, value in layer.state_dict().items()}
        layer.eval()(3 * x)
        torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)

    def test_looks_at_batch_mates_in_eval_mode_only_where_it_says_so(self, name, eval_statistics, x):
        layer = norm(name, eval_statistics)(16).eval()
        alone, together = layer(x[:2]), layer(x)[:2]
        independent = torch.allclose(alone, together, atol=1e-5)
        assert independent == (eval_statistics == "population")
        assert uses_batch_statistics(nn.Sequential(nn.ReLU(), layer)) == (not independent)

    def test_loads_from_a_plain_dict(self, name, eval_statistics, x):
        trained, fresh = norm(name, eval_statistics)(16), norm(name, eval_statistics)(16)
        trained(x)
        fresh.load_state_dict(dict(trained.state_dict()))
        torch.testing.assert_close(fresh.eval()(x), trained.eval()(x), rtol=0, atol=0)


def test_every_norm_in_the_table_is_tested():
    assert {name for name, _ in VARIANTS} == set(NORMS)


def test_torchs_batchnorm_without_running_statistics_uses_batch_statistics():
    assert uses_batch_statistics(nn.BatchNorm2d(3, track_running_stats=False))
    assert not uses_batch_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3)))


def test_unknown_names_are_refused_with_the_accepted_ones():
    with pytest.raises(ValueError, match=r"'layernorm'.*batchnorm.*groupnorm.*robustnorm"):
        norm("layernorm", "population")
    for name in ("batchnorm", "robustnorm"):
        with pytest.raises(ValueError, match=r"'both'.*batch.*population"):
            norm(name, "both")(16)
    with pytest.raises(ValueError, match=r"'batch'.*groupnorm.*'population'"):
        norm("groupnorm", "batch")(16)


def test_robustnorm_trains_by_the_batch_whatever_it_is_judged_by(x):
    layer = with_random_affine(RobustNorm2d(16, eval_statistics="population"))
    torch.testing.assert_close(layer(x), robustnorm_by_channel(x, layer))


def test_robustnorm_of_a_small_range_equals_the_formula(x):
    layer = RobustNorm2d(16, power=1.0)
    torch.testing.assert_close(layer(1e-4 * x), robustnorm_by_channel(1e-4 * x, layer))


@pytest.mark.parametrize("eval_statistics", ["population", "batch"])
@pytest.mark.parametrize("name", ["batchnorm", "robustnorm"])
def test_running_statistics_follow_a_tenth_of_each_training_batch(name, eval_statistics, x):
    layer = norm(name, eval_statistics)(16)
    layer(x)
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean((0, 2, 3)))


def test_groupnorm_has_two_of_sixteen_channels_in_a_group():
    x = torch.randn(6, 16, 5, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 17)[:, None, None]
    groups = norm("groupnorm")(16)(x).unflatten(1, (8, 2))
    torch.testing.assert_close(groups.mean((2, 3, 4)), torch.zeros(6, 8), atol=1e-5, rtol=0)
    assert groups.mean((3, 4)).abs().max() > 0.1
