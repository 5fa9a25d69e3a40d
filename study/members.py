"""Which trials of a search are confirmed, with which seeds; without Ray or torch."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from optuna.trial import FrozenTrial
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from study.results import describe, front_of, is_complete
from study.settings import RUN_SETTINGS, StudySettings
from trainables.config import EvalConfig, TrialConfig
from trainables.errors import InputError

MOST_TRIALS = 1_000_000  # of a search, whose seeds are its own and, added to it, its trials' numbers
MOST_SEEDS = 1000
TIMED_BY = {"concurrent", "cpus_per_trial", "gpus_per_trial"}  # what a training's seconds depend on


class ConfirmSettings(StudySettings):
    """Options of `python -m study.confirm`, under the same names; a study of its own in the search's folder."""

    longest_name: ClassVar[int] = StudySettings.longest_name + len("-confirm")
    alone: ClassVar[bool] = True

    search: str
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = 5
    attack_examples: PositiveInt = 50
    eval_examples: PositiveInt = 10_000
    curve_examples: PositiveInt
    epoch_timeout: PositiveFloat = 24 * 3600.0  # seconds; the last epoch's include all attacks
    space: str = ""  # what is trained is a list, nothing is searched

    @field_validator("gpus_per_trial")
    @classmethod
    def whole_gpus(cls, value: float | None) -> float | None:
        if value is not None and value != int(value):
            raise ValueError(f"{value} given; accepted: 0, or whole GPUs, since each training is timed alone")
        return value

    @property
    def accepted(self) -> str:
        return "the same settings" + ("" if self.storage else f"; for others move {self.folder} elsewhere first")

    @property
    def folder(self) -> Path:
        return self.search_folder / "confirm"

    @property
    def search_folder(self) -> Path:
        return Path(self.results_dir) / self.search

    @property
    def evaluation(self) -> EvalConfig:
        return EvalConfig(
            split="test",
            **self.attack,
            examples=self.eval_examples,
            curve_examples=self.curve_examples,
            probes=("batch_dependence", "strong"),
            strong_examples=self.attack_examples,
        )

    @property
    def identity(self) -> dict[str, object]:
        """The settings that must stay the same while a study goes on; seeds may be added, but not timed otherwise."""
        return self.model_dump(mode="json", exclude=(RUN_SETTINGS - TIMED_BY) | {"seeds"})


class Member(NamedTuple):
    """A trial of the search that is confirmed."""

    number: int
    name: str
    config: TrialConfig  # with the search's seed

    def with_seed(self, seed: int) -> TrialConfig:
        return self.config.model_copy(update={"seed": seed})

    @property
    def label(self) -> str:
        return f"{self.name} (trial {self.number})"


def member(trial: FrozenTrial) -> Member:
    return Member(trial.number, describe(trial), TrialConfig(**trial.user_attrs["config"]))


def configuration(trial: FrozenTrial) -> TrialConfig:
    """Equal for trials that differ by their seed alone."""
    return member(trial).with_seed(0)


def role(trial: FrozenTrial, front: Iterable[int]) -> str:
    """`front`, `published`, `front, published`, or `other`."""
    roles = ["front"] * (trial.number in set(front)) + ["published"] * bool(trial.user_attrs.get("label"))
    return ", ".join(roles) or "other"


def default_members(trials: Sequence[FrozenTrial]) -> list[Member]:
    """The front and the published configurations, once each, fastest first.

    Of configurations that differ by their seed alone, the first trial stands for all.

    Raises:
        InputError: If no trial has run its whole schedule.
    """
    front = {trial.number for trial in front_of(trials)}
    if not front:
        require_a_front(trials)
    chosen = [trial for trial in trials if is_complete(trial) and role(trial, front) != "other"]
    once: dict[TrialConfig, Member] = {}
    for trial in sorted(chosen, key=lambda trial: trial.values[1]):
        once.setdefault(configuration(trial), member(trial))
    return list(once.values())


def require_a_front(trials: Sequence[FrozenTrial]) -> None:
    """Raises:
    InputError: Always: the study has no front.
    """
    ended = sum(trial.state.is_finished() for trial in trials)
    raise InputError(
        f"name: a study without a front given ({len(trials)} trials, {ended} ended, none complete); "
        "accepted: one with a complete trial"
    )


def members_numbered(trials: Sequence[FrozenTrial], numbers: Iterable[int], field: str = "members") -> list[Member]:
    """The trials of these numbers; of those that differ by their seed alone, the one that is named first.

    Raises:
        InputError: If a number is not that of a complete trial.
    """
    complete = {trial.number: trial for trial in trials if is_complete(trial)}
    for number in numbers:
        if number not in complete:
            some = ", ".join(map(str, sorted(trial.number for trial in front_of(trials))))
            raise InputError(f"{field}: {number} given; accepted: complete trials, such as those of the front: {some}")
    once: dict[TrialConfig, Member] = {}
    for number in numbers:
        once.setdefault(configuration(complete[number]), member(complete[number]))
    return list(once.values())


def fresh_seeds(search_seed: int, n: int) -> list[int]:
    """`n` seeds that no trial of the search has, nor can have if it goes on."""
    return [(search_seed + MOST_TRIALS + i) % 2**31 for i in range(n)]
