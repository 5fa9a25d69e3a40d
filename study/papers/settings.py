"""What one reproduction is: validated, without Ray, Optuna or torch."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from study.settings import RUN_SETTINGS, StudySettings
from trainables.config import EvalConfig, Probe

PaperName = Literal["adaptive-batch", "lr-batch-ratio", "robustnorm", "accelat"]
Scale = Literal["minutes", "hours", "paper"]
Protocol = Literal["whitebox", "published"]


class ReproductionSettings(StudySettings):
    """Options of `python -m study.reproduce`, under the same names."""

    paper: PaperName
    scale: Scale
    protocol: Protocol
    seeds: Annotated[int, Field(ge=3, le=1000)] = 3
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    curve_examples: PositiveInt
    probes: tuple[Probe, ...]
    space: str = ""  # what is trained is a list, nothing is searched

    @property
    def evaluation(self) -> EvalConfig:
        """On test; the published protocol attacks the initial weights, once."""
        return EvalConfig(
            split="test",
            **self.attack,
            examples=self.eval_examples,
            curve_examples=self.curve_examples,
            attacked_weights="current" if self.protocol == "whitebox" else "initial",
            probes=self.probes,
        )

    @property
    def identity(self) -> dict[str, object]:
        """The settings that must stay the same while a study goes on; seeds may be added."""
        return self.model_dump(mode="json", exclude=RUN_SETTINGS | {"seeds"})


def natural_eps(dataset: str) -> float:
    """Radius, in pixel units, that tells naturally trained networks apart.

    0.03 on standardised images, whose deviation is about 0.2, is about 1.5/255. The digits have 8x8 pixels of 17
    shades, so that a step of one shade is 16/255: all networks would pass at 1.5/255.
    """
    return 0.1 if dataset == "digits" else 1.5 / 255


def adversarial_eps(dataset: str) -> float:
    """Radius, in pixel units, of adversarial training: 8/255 (Madry et al. 2018), and twice `natural_eps` on digits."""
    return 0.2 if dataset == "digits" else 8 / 255
