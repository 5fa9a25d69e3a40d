import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainables.engine import update
from trainables.norms import BatchNorm2d
from trainables.resnet import Conv3x3, FixupBlock, parameter_groups, resnet, shortcut
from trainables.sgd import SGD

NORMS = ["batchnorm", "robustnorm", "groupnorm", "fixup"]
VARIANTS = [(name, "population") for name in NORMS] + [("batchnorm", "batch"), ("robustnorm", "batch")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def with_random_classifier(model):
    """Fixup's logits are all zero at first."""
    nn.init.normal_(model.classifier.weight, generator=seeded(7))
    return model


@pytest.mark.parametrize(("norm", "eval_statistics"), VARIANTS)
class TestEveryNorm:
    @pytest.mark.parametrize(("size", "in_channels"), [(8, 1), (32, 3)])
    def test_gives_one_logit_per_class(self, norm, eval_statistics, size, in_channels):
        model = resnet(8, 7, in_channels, norm, eval_statistics=eval_statistics)
        x = torch.rand(2, in_channels, size, size)
        for mode in (True, False):
            assert model.train(mode)(x).shape == (2, 7)

    def test_eval_depends_on_batch_mates_only_through_batch_statistics(self, norm, eval_statistics):
        model = with_random_classifier(resnet(8, 10, 1, norm, eval_statistics=eval_statistics, generator=seeded()))
        x = torch.rand(6, 1, 8, 8, generator=seeded())
        alone, together = model.eval()(x[:2]), model(x)[:2]
        assert torch.allclose(alone, together, atol=1e-4) == (eval_statistics == "population")

    def test_same_generator_same_weights(self, norm, eval_statistics):
        torch.manual_seed(1)
        first = resnet(14, 10, 1, norm, eval_statistics=eval_statistics, generator=seeded())
        torch.manual_seed(2)
        second = resnet(14, 10, 1, norm, eval_statistics=eval_statistics, generator=seeded())
        other = resnet(14, 10, 1, norm, eval_statistics=eval_statistics, generator=seeded(1))
        torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
        assert not torch.equal(first.stem[0].weight, other.stem[0].weight)

    def test_channels_last_gives_the_same_logits(self, norm, eval_statistics):
        model = with_random_classifier(resnet(8, 10, 3, norm, eval_statistics=eval_statistics, generator=seeded()))
        x = torch.rand(4, 3, 8, 8, generator=seeded())
        expected = model(x)
        model = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(2, 2), (1, 2), (2, 3), (4, 4)])
def test_a_3x3_convolution_is_torchs_and_so_are_its_gradients(size, memory_format):
    conv = Conv3x3(3, 5).double().to(memory_format=memory_format)
    x = torch.randn(4, 3, *size, dtype=torch.float64, generator=seeded()).to(memory_format=memory_format)
    along = torch.randn(4, 5, *size, dtype=torch.float64, generator=seeded(1))
    x.requires_grad_()
    outputs = conv(x), F.conv2d(x, conv.weight, padding=1)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*[torch.autograd.grad(y, (x, conv.weight), along) for y in outputs])
    assert list(conv.state_dict()) == ["weight"]


def test_a_convolution_of_two_by_two_pixels_is_a_matrix_product_with_channels_last():
    conv, x = Conv3x3(3, 5), torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    with torch.profiler.profile() as profile:
        y = conv(x)
    names = {event.key for event in profile.key_averages()}
    assert "aten::linear" in names and "aten::convolution" not in names
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_resnet_56_has_085_million_parameters():
    model = resnet(56, 10, 3, "batchnorm")
    convolutions = 9 * (3 * 16 + 18 * 16**2 + 16 * 32 + 17 * 32**2 + 32 * 64 + 17 * 64**2)
    scales_and_shifts = 2 * (16 + 18 * (16 + 32 + 64))
    classifier = 64 * 10 + 10
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert n_parameters == convolutions + scales_and_shifts + classifier == 853_018


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("depth", [8, 56])
def test_depth_counts_weighted_layers(depth, norm):
    modules = resnet(depth, 10, 3, norm).modules()
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in modules) == depth


def test_shortcut_subsamples_and_pads_channels_with_zeros():
    x = torch.arange(2 * 2 * 4 * 4.0).view(2, 2, 4, 4)
    y = shortcut(x, 4, 2)
    assert y.shape == (2, 4, 2, 2)
    for row in range(2):
        for column in range(2):
            assert torch.equal(y[:, :2, row, column], x[:, :, 2 * row, 2 * column])
    assert not y[:, 2:].any()


def test_first_layer_standardises_each_channel():
    model = resnet(8, 10, 2, "batchnorm", mean=(0.25, 0.5), std=(0.5, 2.0))
    x = torch.rand(3, 2, 8, 8)
    expected = torch.stack([(x[:, 0] - 0.25) / 0.5, (x[:, 1] - 0.5) / 2.0], 1)
    torch.testing.assert_close(model.standardize(x), expected)
    assert torch.equal(resnet(8, 10, 2, "batchnorm").standardize(x), x)


def test_mean_and_std_are_loaded_with_the_weights():
    saved = resnet(8, 10, 1, "fixup", mean=(0.3,), std=(0.4,)).state_dict()
    model = resnet(8, 10, 1, "fixup")
    model.load_state_dict(dict(saved))
    torch.testing.assert_close(model.standardize(torch.ones(1, 1, 1, 1)).item(), 0.7 / 0.4)


@pytest.mark.parametrize("norm", ["batchnorm", "robustnorm", "groupnorm"])
def test_convolutions_have_he_deviations(norm):
    model = resnet(20, 10, 3, norm, generator=seeded())
    for conv in (module for module in model.stages.modules() if isinstance(module, nn.Conv2d)):
        expected = math.sqrt(2 / (9 * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_fixup_scales_first_convolutions_by_the_number_of_blocks_and_starts_without_branches():
    model = resnet(56, 10, 3, "fixup", generator=seeded())
    assert len(model.stages) == 27
    for block in model.stages:
        expected = math.sqrt(2 / (9 * block.conv1.out_channels)) / math.sqrt(27)
        assert block.conv1.weight.std().item() == pytest.approx(expected, rel=0.1)
        x = torch.randn(2, block.conv1.in_channels, 4, 4, generator=seeded())
        assert not block.branch(x).any()
        assert torch.equal(block(x), shortcut(x, block.n_out, block.stride).relu())
    assert not model(torch.rand(2, 3, 8, 8)).any()


def test_fixup_block_equals_the_published_formula():
    block = FixupBlock(4, 8, 2)
    for parameter in block.parameters():
        nn.init.normal_(parameter, generator=seeded(3))
    bias1a, bias1b = block.before_conv1.bias, block.before_relu.bias
    bias2a, bias2b = block.before_conv2.bias, block.after_scale.bias
    x = torch.randn(2, 4, 6, 6, generator=seeded())
    y = F.relu(F.conv2d(x + bias1a, block.conv1.weight, stride=2, padding=1) + bias1b)
    y = F.conv2d(y + bias2a, block.conv2.weight, padding=1) * block.scale + bias2b
    identity = F.avg_pool2d(x + bias1a, 1, 2)
    expected = F.relu(y + torch.cat([identity, torch.zeros_like(identity)], 1))
    torch.testing.assert_close(block(x), expected)


def test_fixup_56_trains_at_a_large_rate():
    model = resnet(56, 10, 1, "fixup", mean=(0.5,), std=(0.29,), generator=seeded())
    optimizer = SGD(model, momentum=0.9, nesterov=False, weight_decay=5e-4)
    optimizer.set_lr(0.1)
    x, y = torch.rand(16, 1, 8, 8, generator=seeded()), torch.arange(16) % 10
    losses = []
    for _ in range(28):
        losses.append(update(optimizer, F.cross_entropy(model(x), y)).item())
    assert losses[0] == pytest.approx(math.log(10))
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.9 * losses[0]


def test_fixup_scalars_and_the_classifiers_bias_learn_at_a_tenth():
    model = resnet(8, 10, 3, "fixup")
    factors = {id(p): group["lr_factor"] for group in parameter_groups(model) for p in group["params"]}
    assert len(factors) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert factors[id(parameter)] == (1.0 if name.endswith("weight") else 0.1), name
    assert sum(p.numel() for group in parameter_groups(model)[1:] for p in group["params"]) == 3 * 5 + 2 + 10


@pytest.mark.parametrize("model", [resnet(8, 10, 3, "batchnorm"), nn.Sequential(nn.Linear(3, 2), BatchNorm2d(2))])
def test_other_networks_have_one_group(model):
    (group,) = parameter_groups(model)
    assert group["lr_factor"] == 1.0
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("depth", [2, 7, 18, 52])
def test_depths_other_than_6n_plus_2_are_refused(depth):
    with pytest.raises(ValueError, match=rf"{depth} given; accepted: 6n\+2"):
        resnet(depth, 10, 3, "batchnorm")


def test_mistaken_arguments_are_refused():
    with pytest.raises(ValueError, match=r"'layernorm'.*batchnorm.*fixup.*groupnorm.*robustnorm"):
        resnet(8, 10, 3, "layernorm")
    for norm in ("fixup", "groupnorm"):
        with pytest.raises(ValueError, match="eval_statistics 'batch'"):
            resnet(8, 10, 3, norm, eval_statistics="batch")
    with pytest.raises(ValueError, match=r"mean: 1 values given; accepted: one per channel \(3\)"):
        resnet(8, 10, 3, "batchnorm", mean=(0.5,))
