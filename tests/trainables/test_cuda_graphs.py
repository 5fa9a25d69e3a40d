"""What a CUDA graph asks of the work it repeats, checked on the CPU by a tape, and on CUDA by the graph itself.

A tape records the operations of one run and repeats them on the same tensors with the same numbers, as a graph does:
what was a number on the host at the time stays that number, and a tensor that another one has replaced is still the one
that is read and written. Generators are asked anew at each replay, as a graph's are.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainables import adversarial, cuda_graphs, data, engine
from trainables.attacks import ContinuousPgd, pgd, robust_mask
from trainables.config import ConstantBatch, EvalConfig, GeometricBatch, MilestoneBatch, TrialConfig
from trainables.cuda_graphs import Graphs, unchanged
from trainables.resnet import resnet
from trainables.sgd import SGD
from trainables.trial import Trial

CPU = torch.device("cpu")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")]

# What reads values or shapes from the device, or copies from the host: a capture would fail.
FORBIDDEN = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "equal",
    "is_nonzero",
    "lift_fresh",
    "lift_fresh_copy",
}


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in FORBIDDEN, f"{name} waits for the device or copies from the host"
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        )
        assert not masks, f"{name} by a mask has a shape that depends on data"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Taped(Graphs):
    """Graphs whose captures are tapes."""

    def __init__(self, device, generators=()):
        super().__init__(device, generators)
        self.captures = True

    def _captured(self, work, restore):
        work()
        restore()
        with Tape() as tape:
            work()
        return tape


DEVICES = [pytest.param(CPU, Taped, id="tape"), pytest.param(torch.device("cuda"), Graphs, id="cuda", marks=gpu)]
on_each_device = pytest.mark.parametrize(("device", "make_graphs"), DEVICES)


@pytest.fixture(scope="module")
def few_digits():
    digits = data.load("digits")
    train = data.Split(digits.train.images[:86], digits.train.labels[:86])
    return type(digits)(**{**vars(digits), "train": train})


def on(device, dataset):
    parts = {
        name: data.Split(part.images.to(device), part.labels.to(device))
        for name, part in vars(dataset).items()
        if isinstance(part, data.Split)
    }
    return type(dataset)(**{**vars(dataset), **parts})


def assert_same(device, mine, theirs):
    """Digit by digit on the CPU; on CUDA kernels may sum in another order."""
    tolerance = {"rtol": 0, "atol": 0} if device.type == "cpu" else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.fixture
def same_kernels(monkeypatch):
    """cuDNN's kernels are the same captured and eager: TRADES and bf16 soon make other weights of another rounding."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(cuda_graphs, "fastest_convolutions", nullcontext)


# The tape itself


@on_each_device
def test_a_number_on_the_host_stays_what_it_was(device, make_graphs):
    total, rate, graphs = torch.zeros((), device=device), 1.0, make_graphs(device)

    def work():
        total.add_(rate)

    graphs.prepare("add", work, [total])
    assert total.item() == 0
    rate = 5.0
    graphs.run("add", work)
    assert total.item() == 1


@on_each_device
def test_a_tensor_that_was_replaced_is_still_the_one_that_is_used(device, make_graphs):
    holder, graphs = {"x": torch.zeros((), device=device)}, make_graphs(device)
    first = holder["x"]

    def work():
        holder["x"].add_(1)

    graphs.prepare("add", work, [first])
    holder["x"] = torch.zeros((), device=device)
    graphs.run("add", work)
    assert (first.item(), holder["x"].item()) == (1, 0)


def test_asking_the_device_is_noticed():
    x = torch.ones(3)
    for ask in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: x[x > 0], lambda: x.add_(torch.tensor([1.0]))):
        with pytest.raises(AssertionError, match="device|host|data"), Tape():
            ask()


@on_each_device
def test_random_numbers_are_new_at_each_replay_and_those_of_the_generator(device, make_graphs):
    generator, x = torch.Generator(device).manual_seed(3), torch.zeros(100, device=device)
    graphs = make_graphs(device, [generator])

    def work():
        x.uniform_(generator=generator)

    graphs.prepare("draw", work, [x])
    drawn = []
    for _ in range(3):
        graphs.run("draw", work)
        drawn.append(x.clone())
    generator.manual_seed(3)
    for mine in drawn:
        work()
        assert torch.equal(mine, x)


def test_values_and_generators_come_back_in_place():
    x, generator = torch.arange(4.0), torch.Generator().manual_seed(0)
    address, expected = x.data_ptr(), torch.rand(1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ZeroDivisionError), unchanged([x], [generator]) as restore:
        x.add_(torch.rand(4, generator=generator))
        restore()
        assert torch.equal(x, torch.arange(4.0))
        x.zero_()
        torch.rand(9, generator=generator)
        raise ZeroDivisionError
    assert torch.equal(x, torch.arange(4.0)) and x.data_ptr() == address
    assert torch.equal(torch.rand(1, generator=generator), expected)


# Training


CONFIG = TrialConfig(
    depth=8, batch_size_schedule=GeometricBatch(first=16, last=64), lr_batch_ratio=1e-3, epochs=3, precision="fp32"
)
EVALUATION = EvalConfig(eps=0.1, attack_steps=2, examples=40, curve_examples=20)
CONFIGS = {
    "batchnorm": {},
    "fixup, cosine, nesterov": {"norm": "fixup", "lr_schedule": "cosine", "nesterov": True},
    "robustnorm by the batch": {"norm": "robustnorm", "eval_statistics": "batch"},
    "groupnorm, no momentum": {"norm": "groupnorm", "momentum": 0.0, "lr_schedule": "linear"},
    "bf16": {"precision": "bf16"},
    "pgd": {"training": "pgd", "pgd_steps": 2, "eps": 0.1},
    "fgsm": {"training": "fgsm", "eps": 0.1},
    "trades": {"training": "trades", "pgd_steps": 2, "eps": 0.1},
    "static": {"training": "static", "pgd_steps": 2, "eps": 0.1},
    "pgd, l2": {"training": "pgd", "pgd_steps": 2, "eps": 0.5, "attack_norm": "l2"},
    "trades, l2": {"training": "trades", "pgd_steps": 2, "eps": 0.5, "attack_norm": "l2"},
    "free, l2": {"training": "free", "free_replays": 2, "eps": 0.5, "attack_norm": "l2"},
    "free, there and back": {
        "training": "free",
        "free_replays": 2,
        "eps": 0.1,
        "batch_size_schedule": MilestoneBatch(sizes=(16, 64, 16), milestones=(1, 2)),
    },
}


def trial(config, dataset, device, make_graphs=None):
    made = Trial(config, on(device, dataset), EVALUATION, device)
    generators = [made.generator]
    made.graphs = make_graphs(device, generators) if make_graphs else Graphs(device, generators, capture=False)
    return made


def numbers(trial):
    columns = ("train_loss", "clean_accuracy", "adversarial_accuracy")
    return torch.tensor([[row[column] for column in columns] for row in trial.curve])


def train(trial):
    while not trial.done:
        trial.train_epoch()
    return trial


@pytest.mark.usefixtures("same_kernels")
@on_each_device
@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_captured_trial_equals_an_eager_one(device, make_graphs, fields, few_digits):
    config = CONFIG.model_copy(update=fields)
    captured = train(trial(config, few_digits, device, make_graphs))
    eager = train(trial(config, few_digits, device))
    assert captured.graphs.graphs and not eager.graphs.graphs
    if device.type == "cpu":
        assert torch.equal(numbers(captured), numbers(eager))
    assert_same(device, dict(captured.model.state_dict()), dict(eager.model.state_dict()))


@pytest.mark.usefixtures("same_kernels")
@on_each_device
@pytest.mark.parametrize("training", ["natural", "pgd"])
def test_saving_and_loading_into_live_graphs_equals_going_on(device, make_graphs, training, few_digits, tmp_path):
    config = CONFIG.model_copy(update={"training": training, "pgd_steps": 1})
    whole = trial(config, few_digits, device, make_graphs)
    whole.train_epoch()
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    train(whole)
    # This one has captured every size and trained on, before the state comes.
    resumed = train(trial(config, few_digits, device, make_graphs))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", map_location=device, weights_only=True))
    assert len(resumed.curve) == 1
    train(resumed)
    if device.type == "cpu":
        assert torch.equal(numbers(resumed), numbers(whole))
    assert_same(device, dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


@on_each_device
def test_tensors_stay_where_they_are(device, make_graphs, few_digits):
    running = trial(CONFIG.model_copy(update={"training": "free"}), few_digits, device, make_graphs)
    running.warm_up()
    places = {}
    for _ in range(3):
        running.train_epoch()
        running.load_state_dict(running.state_dict())
        trainer = running.trainer
        tensors = [*trainer._state(), trainer.images.images, trainer.order, trainer.lrs, trainer.step.delta]
        places.setdefault("all", [tensor.data_ptr() for tensor in tensors])
        assert [tensor.data_ptr() for tensor in tensors] == places["all"]


@on_each_device
def test_each_size_and_each_rest_is_captured_once(device, make_graphs, few_digits):
    running = trial(CONFIG, few_digits, device, make_graphs)
    running.warm_up()
    sizes = sorted(size for _, size in running.graphs.graphs)
    assert sizes == [6, 16, 22, 32, 64]  # 86 = 5·16 + 6 = 2·32 + 22 = 64 + 22
    graphs = dict(running.graphs.graphs)
    train(running)
    assert all(running.graphs.graphs[key] is graph for key, graph in graphs.items())


@on_each_device
def test_a_loss_that_is_not_finite_is_skipped_in_a_replay(device, make_graphs):
    generator = torch.Generator(device).manual_seed(0)
    model = resnet(8, 10, 1, "batchnorm", generator=torch.Generator().manual_seed(0))
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = SGD(model, momentum=0.9, nesterov=False, weight_decay=0.0)
    bad = torch.zeros((), device=device)

    def step(model, optimizer, x, y):
        return engine.update(optimizer, torch.nn.functional.cross_entropy(model(x), y) / (1 - bad))

    images = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8, device=device)
    split = data.Split(images, torch.arange(8, device=device))
    trainer = engine.Trainer(model, optimizer, step, split, "none", generator, make_graphs(device, [generator]))

    def weights():
        state = [*model.parameters(), *optimizer.momentum]
        return [tensor.detach().clone() for tensor in state]

    trainer.train_epoch(8, [0.1])
    before = weights()
    bad.fill_(1)
    assert not trainer.train_epoch(8, [0.1]).isfinite()
    assert all(torch.equal(*pair) for pair in zip(before, weights(), strict=True))
    bad.zero_()
    assert trainer.train_epoch(8, [0.1]).isfinite()
    assert not any(torch.equal(*pair) for pair in zip(before, weights(), strict=True) if pair[0].any())


# Nothing but tensors of one device


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, which copy: what the host has, a graph would not read again."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        assert len(devices) < 2, f"{func} on {devices}"
        return out


def test_a_tensor_of_the_host_is_noticed():
    with pytest.raises(AssertionError, match="cpu"), OneDevice():
        torch.ones(3, device="meta") * torch.tensor(2.0)


@pytest.mark.parametrize("norm", ["batchnorm", "robustnorm", "groupnorm", "fixup"])
@pytest.mark.parametrize("training", sorted(adversarial.RECIPES))
@pytest.mark.parametrize("attack_norm", ["linf", "l2"])
def test_a_step_touches_one_device_only_and_reads_no_value(attack_norm, training, norm, monkeypatch):
    meta = torch.device("meta")  # tensors without values: whoever asks for one gets an error
    monkeypatch.setattr(SGD, "step", lambda self, skip: None)  # has no meta kernel
    attack = {"attack_norm": attack_norm, "pgd_steps": 2}
    config = CONFIG.model_copy(update=attack | {"training": training, "batch_size_schedule": ConstantBatch(size=4)})
    with meta:
        model = resnet(8, 10, 3, norm)
    optimizer = SGD(model, momentum=0.9, nesterov=False, weight_decay=0.0)
    split = data.Split(torch.zeros(12, 3, 8, 8, dtype=torch.uint8, device=meta), torch.arange(12, device=meta))
    step = adversarial.step(config, None)
    trainer = engine.Trainer(model, optimizer, step, split, "none", None, Graphs(meta))
    trainer.model.train()
    with OneDevice():
        trainer._step(4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_iteration_touches_one_device_only_and_reads_no_value(norm):
    meta = torch.device("meta")
    with meta:
        model = resnet(8, 10, 3, "batchnorm").eval()
    attack = ContinuousPgd(model, (3, 8, 8), 20, Graphs(meta), eps=0.1, steps=3, norm=norm, batch_size=8)
    with OneDevice():
        attack._iterate()


# Evaluation


@on_each_device
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("n", [5, 64, 200])  # fewer than there are slots, as many, more than fit in a line
def test_continuous_batching_finds_the_robust_examples_of_pgd(device, make_graphs, norm, n, few_digits):
    config = CONFIG.model_copy(update={"batch_size_schedule": ConstantBatch(size=16)})
    model = train(trial(config, few_digits, device)).model
    part = on(device, few_digits).validation
    x, y = data.to_float(part.images[:n]).contiguous(memory_format=torch.channels_last), part.labels[:n]
    eps = {"linf": 0.05, "l2": 0.4}[norm]
    rule = {"eps": eps, "steps": 4, "norm": norm}
    graphs = make_graphs(device)
    attack = ContinuousPgd(model, tuple(x.shape[1:]), min(n, 128), graphs, batch_size=64, **rule)
    for _ in range(2):  # the second time nothing of the first may be left
        generators = [torch.Generator(device).manual_seed(1) for _ in range(2)]

        def plain(model, x, y, generator=generators[1]):
            return pgd(model, x, y, generator=generator, drop_fooled=True, **rule)

        with engine.convolving_in("fp32"):
            mine, expected = attack.robust_mask(x, y, generators[0]), robust_mask(model, x, y, plain, 64)
        assert n == 5 or 0.05 < expected.float().mean() < 0.95
        if device.type == "cpu":
            assert torch.equal(mine, expected)
        else:
            assert (mine != expected).sum() <= 1  # a margin within rounding
    assert len(graphs.graphs) == 1


@on_each_device
def test_continuous_batching_follows_weights_that_change(device, make_graphs, few_digits):
    running = trial(CONFIG, few_digits, device, make_graphs)
    running.train_epoch()
    x, y = running.dataset.validation.images[:60], running.dataset.validation.labels[:60]
    x = data.to_float(x).contiguous(memory_format=torch.channels_last)
    attack = running.continuous_pgd
    masks = []
    for _ in range(2):
        fresh = ContinuousPgd(
            running.model, (1, 8, 8), 60, Graphs(device, capture=False), eps=0.1, steps=2, batch_size=256
        )
        with engine.convolving_in("fp32"):  # as the trial captured it
            masks.append(attack.robust_mask(x, y))
            assert (masks[-1] != fresh.robust_mask(x, y)).sum() <= (device.type == "cuda")
        running.train_epoch()
    assert not torch.equal(*masks)


# CUDA alone


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")
def test_all_graphs_of_a_trial_share_one_pool(few_digits):
    device = torch.device("cuda")
    running = trial(CONFIG, few_digits, device, Graphs)
    running.warm_up()
    running.train_epoch()
    assert {graph.pool() for graph in running.graphs.graphs.values()} == {running.graphs.pool}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")
def test_trials_one_after_the_other_free_their_graphs(few_digits):
    device, reserved = torch.device("cuda"), []
    for _ in range(4):
        running = trial(CONFIG.model_copy(update={"epochs": 1}), few_digits, device, Graphs)
        train(running)
        del running
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # torch 2.11 keeps one for each of the 32 streams that it hands out
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= reserved[1]


@on_each_device
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_nothing_is_classified_correctly_nothing_is_robust(device, make_graphs, norm):
    model = resnet(8, 10, 1, "fixup").to(device)  # all logits zero: class 0 for every image
    x, y = torch.rand(5, 1, 8, 8, device=device), torch.ones(5, dtype=torch.int64, device=device)
    attack = ContinuousPgd(model, (1, 8, 8), 5, make_graphs(device), eps=0.1, steps=2, norm=norm, batch_size=4)
    generator = torch.Generator(device).manual_seed(1)
    assert attack.robust_mask(x, y, generator).tolist() == [False] * 5
