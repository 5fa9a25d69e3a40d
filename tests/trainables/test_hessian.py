import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from trainables.hessian import dominant_eigenvalues
from trainables.resnet import resnet


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_network():
    """43 parameters that are trained and 3 that are not, in double precision."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3))
    network[4].weight.requires_grad_(False)
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=seeded(parameter.numel()))
    return network.double().eval()


def examples(n=12):
    return torch.rand(n, 1, 2, 2, generator=seeded(1), dtype=torch.float64), torch.arange(n) % 3


def explicit_eigenvalues(network, x, y):
    """All of them, of the Hessian written out, largest modulus first."""
    shapes = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}

    def mean_loss(flat):
        parts = flat.split([parameter.numel() for parameter in shapes.values()])
        values = {name: part.view_as(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(network, values, (x,)), y)

    flat = torch.cat([parameter.detach().reshape(-1) for parameter in shapes.values()])
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(mean_loss, flat))
    return eigenvalues[eigenvalues.abs().argsort(descending=True)]


@pytest.fixture(scope="module")
def trained():
    """A ResNet-8 after one epoch of digits, in eval mode, and 96 digits in batches of 40, 40 and 16."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(labels)
    network = resnet(8, 10, 1, "batchnorm", generator=seeded())
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for index in range(0, 1280, 64):
        optimizer.zero_grad()
        F.cross_entropy(network(x[index : index + 64]), y[index : index + 64]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network.eval(), list(zip(x[:96].split(40), y[:96].split(40), strict=True))


def test_eigenvalues_equal_those_of_the_explicit_hessian():
    network, (x, y) = small_network(), examples()
    expected = explicit_eigenvalues(network, x, y)
    for k in (1, 3, 8):
        found = dominant_eigenvalues(network, F.cross_entropy, [(x, y)], k, tolerance=1e-10, generator=seeded())
        torch.testing.assert_close(found, expected[:k], rtol=1e-9, atol=0)


def test_all_eigenvalues_and_a_single_batch():
    network, (x, y) = small_network(), examples()
    found = dominant_eigenvalues(network, F.cross_entropy, (x, y), 43)
    torch.testing.assert_close(found, explicit_eigenvalues(network, x, y), rtol=1e-6, atol=1e-9)
    two = dominant_eigenvalues(network, F.cross_entropy, [x[:2], y[:2]], 2, generator=seeded())
    torch.testing.assert_close(two, explicit_eigenvalues(network, x[:2], y[:2])[:2], rtol=1e-4, atol=0)
    line = nn.Linear(1, 1, bias=False)  # half of the second derivative of mean (wx - y)²: the mean of x²
    found = dominant_eigenvalues(line, F.mse_loss, [(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))], 1)
    assert found.tolist() == pytest.approx([10.0])


def test_a_negative_eigenvalue_counts_by_its_modulus():
    network = nn.Linear(3, 1, bias=False).double()

    def saddle(outputs, y):
        return (torch.tensor([1.0, -5.0, 3.0]) * network.weight**2).sum() / 2

    found = dominant_eigenvalues(network, saddle, [(torch.zeros(1, 3).double(), torch.zeros(1))], 2)
    torch.testing.assert_close(found, torch.tensor([-5.0, 3.0]).double())


def test_batches_of_unequal_size_equal_one_batch():
    network, (x, y) = small_network(), examples()
    whole, cut = (
        dominant_eigenvalues(network, F.cross_entropy, batches, 3, tolerance=1e-10, generator=seeded())
        for batches in ([(x, y)], zip(x.split([7, 1, 4]), y.split([7, 1, 4]), strict=True))
    )
    torch.testing.assert_close(cut, whole, rtol=1e-9, atol=0)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_eigenvalues_agree_with_pyhessian(trained):
    pyhessian = pytest.importorskip("pyhessian")
    network, batches = trained
    torch.manual_seed(0)
    reference = pyhessian.hessian(copy.deepcopy(network), nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
    expected, _ = reference.eigenvalues(maxIter=300, tol=1e-5, top_n=3)
    found = dominant_eigenvalues(network, F.cross_entropy, batches, 3, generator=seeded())
    assert found.tolist() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("norm", ["batchnorm", "robustnorm", "groupnorm", "fixup"])
def test_every_norm_can_be_differentiated_twice(norm):
    network = resnet(8, 10, 1, norm, generator=seeded()).to(memory_format=torch.channels_last).eval()
    batch = torch.rand(8, 1, 8, 8, generator=seeded()), torch.arange(8)
    (found,) = dominant_eigenvalues(network, F.cross_entropy, [batch], 1, generator=seeded())
    assert found.isfinite() and found.abs() > 0


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(trained, training):
    network, batches = copy.deepcopy(trained[0]).train(training), trained[1]
    network.stages[0].norm1.train(not training)
    network.classifier.bias.grad = torch.full_like(network.classifier.bias, 0.25)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    with torch.no_grad():
        found = dominant_eigenvalues(network, F.cross_entropy, batches, 1, tolerance=1e-2, generator=seeded())
    assert not found.requires_grad and found.dtype == torch.float32
    torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(network.classifier.bias.grad, torch.full_like(network.classifier.bias, 0.25))
    assert [name for name, value in network.named_parameters() if value.grad is not None] == ["classifier.bias"]


def test_a_loss_without_curvature_has_eigenvalues_of_zero():
    batch = torch.rand(4, 3, generator=seeded()), torch.zeros(4)
    found = dominant_eigenvalues(nn.Linear(3, 2), lambda outputs, y: outputs.mean(), [batch], 2)
    assert torch.equal(found, torch.zeros(2))


def test_weights_that_are_not_finite_are_an_error():
    network = nn.Linear(3, 2)
    nn.init.constant_(network.weight, torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        dominant_eigenvalues(network, F.cross_entropy, [(torch.zeros(1, 3), torch.tensor([0]))], 1)


def test_eigenvalues_beyond_the_rank_are_zero_and_repeatable():
    """One example, two classes: rank 1, so Lanczos meets an invariant subspace at once."""
    network = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(network.weight)
    x = torch.tensor([[1.0, 2.0, 2.0]]).double()
    first, second = (
        dominant_eigenvalues(network, F.cross_entropy, [(x, torch.tensor([0]))], 2, generator=seeded()) for _ in "ab"
    )
    # Hessian (diag p - p p^T) x x^T with p = 1/2: eigenvalue 1/2 · |x|^2.
    torch.testing.assert_close(first, torch.tensor([4.5, 0.0]).double())
    assert torch.equal(first, second)


def test_same_generator_same_eigenvalues(trained):
    network, batches = trained
    first, second = (dominant_eigenvalues(network, F.cross_entropy, batches[2:], 2, generator=seeded(3)) for _ in "ab")
    assert torch.equal(first, second)


def test_a_wrong_count_names_what_is_accepted():
    network, batch = nn.Linear(2, 2), (torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    for k in (0, 7):
        with pytest.raises(ValueError, match="1 to 6"):
            dominant_eigenvalues(network, F.cross_entropy, [batch], k)
    with pytest.raises(ValueError, match="no batch"):
        dominant_eigenvalues(network, F.cross_entropy, [], 1)


def test_too_few_iterations_are_an_error(trained):
    network, batches = trained
    with pytest.raises(RuntimeError, match="converged in 1 iterations"):
        dominant_eigenvalues(network, F.cross_entropy, batches[2:], 8, iterations=1, tolerance=1e-9)


def test_a_parameter_that_the_loss_does_not_depend_on_has_no_curvature():
    network = nn.ModuleDict({"used": nn.Linear(1, 1, bias=False), "unused": nn.Linear(1, 1, bias=False)})
    network.forward = lambda x: network["used"](x)
    found = dominant_eigenvalues(network, F.mse_loss, [(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))], 2)
    assert found.tolist() == pytest.approx([10.0, 0.0])
