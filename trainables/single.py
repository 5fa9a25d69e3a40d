"""One training from its first epoch to its last, without a study around it."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

from trainables import data, devices
from trainables.config import DataConfig, EvalConfig, TrialConfig
from trainables.trial import Trial


def train(
    config: TrialConfig,
    images: DataConfig,
    evaluation: EvalConfig,
    path: Path,
    say: Callable[[str], None],
    n_threads: int,
) -> tuple[Path, dict[str, float]]:
    """Train on the GPU where there is one, with a line for each epoch, and write the weights to `path`.

    As many threads as the search's trials had make the same numbers on a CPU of the same kind.

    Returns:
        Where the weights are: beside `path`, where another file has appeared there meanwhile. And the last epoch's row
        of the curve, with accuracies on all of `evaluation.examples`.

    Raises:
        Diverged: If the loss or a weight is not finite at an epoch's end; nothing is written then.
        InputError: If the images cannot be used.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = data.configured(images, device)
    with devices.computing_on(n_threads):
        trial = Trial(config, dataset, evaluation, device)
        trial.warm_up()
        while not trial.done:
            row = trial.train_epoch()
            say(
                f"epoch {row['epoch']} of {config.epochs}: {row['train_seconds']:.1f} s, loss {row['train_loss']:.3f}, "
                f"clean {row['clean_accuracy']:.3f}, adversarial {row['adversarial_accuracy']:.3f}"
            )
    free = taken(path)
    try:
        trial.save_weights(free)
    except BaseException:
        free.unlink()
        raise
    return free, row


def taken(path: Path) -> Path:
    """A new empty file: `path`, or where there is one, the first free of `name-2.suffix`, `name-3.suffix`, ..."""
    for number in count(1):
        place = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        try:
            place.touch(exist_ok=False)
            return place
        except FileExistsError:
            continue
