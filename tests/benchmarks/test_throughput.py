import json
from pathlib import Path

import pytest
import torch
from torchvision.transforms import ToTensor

from trainables import data
from trainables.resnet import Conv3x3, resnet

torchattacks = pytest.importorskip("torchattacks")

from benchmarks import plain, throughput  # noqa: E402 (needs torchattacks)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_short_measurement_holds_both_sides_and_their_ratio(tmp_path: Path):
    out = tmp_path / "throughput.json"
    argv = ["--depth", "8", "--rounds", "1", "--epochs", "2", "--configurations", "1", "--repeats", "2"]
    argv += ["--concurrent", "1"]
    assert throughput.main([*argv, "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    (measured,) = content["rounds"]
    for side in ("study", "plain"):
        trials = measured[side]["trials"]
        assert [trial["label"] for trial in trials] == ["Fixup 8→128", "Fixup 8→128, 2"]
        for trial in trials:
            assert trial["n_examples"] == 300
            assert 0 < trial["train_seconds"] < trial["seconds"] < measured[side]["seconds"]
        assert measured[side]["trials_per_hour"] == pytest.approx(2 * 3600 / measured[side]["seconds"])
    assert measured["ratio"] == pytest.approx(measured["plain"]["seconds"] / measured["study"]["seconds"])
    assert content["ratio"] == {"mean": measured["ratio"], "low": measured["ratio"], "high": measured["ratio"]}


def test_the_plain_side_sees_the_same_images():
    validation = data.load("digits").validation
    images = plain.Images(validation, ToTensor())
    assert len(images) == len(validation)
    torch.testing.assert_close(images[7][0], data.to_float(validation.images[7]))
    assert images[7][1] == validation.labels[7]


def test_the_plain_side_scores_a_constant_classifier_by_its_labels():
    class AlwaysThree(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(3), 10).float())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits + 0 * x.sum((1, 2, 3))[:, None]

    net, split = AlwaysThree(), data.load("digits").validation
    loader = torch.utils.data.DataLoader(plain.Images(split, ToTensor()), batch_size=64)
    threes = (split.labels == 3).float().mean().item()
    scores = plain.evaluate(net, loader, torchattacks.PGD(net, eps=0.1, alpha=0.025, steps=2), "cpu")
    assert scores == pytest.approx((threes, threes))


@pytest.mark.parametrize(
    ("argv", "field"),
    [(["--depth", "9"], "depth"), (["--rounds", "0"], "rounds"), (["--out", "missing/folder/x.json"], "out")],
)
def test_a_bad_option_gets_one_line(argv: list[str], field: str, capsys: pytest.CaptureFixture[str]):
    assert throughput.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert field in error


def test_the_plain_side_has_the_same_weights_and_torchs_convolutions():
    ours = resnet(8, 10, 1, "fixup", generator=torch.Generator().manual_seed(0))
    theirs = plain.with_torchs_convolutions(resnet(8, 10, 1, "fixup", generator=torch.Generator().manual_seed(0)))
    assert any(isinstance(module, Conv3x3) for module in ours.modules())
    assert not any(isinstance(module, Conv3x3) for module in theirs.modules())
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict(), rtol=0, atol=0)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(theirs(x), ours(x))
