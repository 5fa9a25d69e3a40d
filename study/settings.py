"""What one study is: validated, without Ray, Optuna or torch."""

import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator
from sqlalchemy import URL

from trainables.config import (
    AttackNorm,
    DataConfig,
    DatasetName,
    Depth,
    EvalConfig,
    Frozen,
    one_line,
    require_radius,
)
from trainables.errors import InputError, nearest
from trainables.stores import is_uri, join

Sampler = Literal["front", "tpe", "nsga2", "gp", "random"]
Objective = Literal["measured", "calibrated"]

# What may differ when a study is continued; all else is the study's identity.
RUN_SETTINGS = {"trials", "timeout", "sampler", "retries", "storage", "storage_path", "results_dir", "address"}
RUN_SETTINGS |= {"concurrent", "cpus_per_trial", "gpus_per_trial", "epoch_timeout"}
RUN_SETTINGS |= {"stop_early", "max_trial_seconds", "warm_start", "until_gain"}

ADDED_LATER = {"attack_norm": "linf"}  # what studies had before it was a setting

NEW_NAME = "the same settings, or a new --name"

ONLY_FRONT = ("max_trial_seconds", "warm_start", "until_gain")  # what sampler `front` alone is steered by


class StudySettings(Frozen):
    """Options of `python -m study.pareto`, under the same names."""

    longest_name: ClassVar[int] = 100
    alone: ClassVar[bool] = False  # one trial at a time, unless each has a GPU of its own

    name: str
    space: str = "quickstart"
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    timeout: PositiveFloat | None = None  # seconds
    dataset: DatasetName = "digits"
    data_dir: str | None = None
    depth: Depth | None = None  # None: the space's own
    attack_norm: AttackNorm = "linf"
    eps: Annotated[float, Field(ge=0)] = 8 / 255  # radius, pixel units
    attack_steps: Annotated[int, Field(ge=1, le=10_000)] = 10
    eval_examples: PositiveInt = 1000
    sampler: Sampler = "front"
    stop_early: bool = False
    max_trial_seconds: PositiveFloat | None = None  # with sampler `front`, as the next two
    warm_start: str | None = None  # name of an earlier study
    until_gain: Annotated[float, Field(ge=0)] | None = None  # of the hypervolume, per device-hour; 0: never
    seed: Annotated[int, Field(ge=0, lt=2**31 - 1_000_000)] = 0
    retries: Annotated[int, Field(ge=0, le=1000)] = 3
    epoch_timeout: Annotated[float, Field(gt=0, le=1e9)] = 3600.0  # seconds
    objective: Objective | None = None  # None: calibrated where trials share a device or kinds of GPU differ
    cpus_per_trial: Annotated[float, Field(ge=0.01, le=1024)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0, le=64)] | None = None  # None: 1 where there are GPUs
    concurrent: PositiveInt | None = None  # None: as many as fit
    storage: str | None = None  # None: SQLite in the results folder
    storage_path: str | None = None  # of checkpoints and weights, a path or URI; None: in the results folder
    results_dir: str = "results"
    address: str | None = None  # None: Ray on this machine

    @field_validator("address")
    @classmethod
    def none_is_on_this_machine(cls, address: str | None) -> str | None:
        return None if address == "local" else address  # Ray's own word for it

    @field_validator("name")
    @classmethod
    def fit_for_a_folder(cls, name: str) -> str:
        if len(name) > cls.longest_name or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            accepted = f"up to {cls.longest_name} letters, digits, '.', '_' and '-', a letter or a digit first"
            raise ValueError(f"{name!r:.120} given; accepted: {accepted}")
        return name

    @model_validator(mode="after")
    def a_hundredth_of_a_gpu_or_none(self) -> "StudySettings":
        if self.gpus_per_trial is not None and 0 < self.gpus_per_trial < 0.01:
            raise ValueError(f"gpus_per_trial: {self.gpus_per_trial} given; accepted: 0, or at least 0.01")
        return self

    @model_validator(mode="after")
    def within_reach(self) -> "StudySettings":
        require_radius("eps", self.eps, self.attack_norm)
        return self

    @model_validator(mode="after")
    def only_front_steers(self) -> "StudySettings":
        for field in ONLY_FRONT:
            if getattr(self, field) is not None and self.sampler != "front":
                raise ValueError(f"{field}: given with sampler {self.sampler!r}; accepted: with sampler 'front'")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.results_dir) / self.name

    @property
    def accepted(self) -> str:
        """Where the study has other settings."""
        return NEW_NAME

    @property
    def threads(self) -> int:
        """That a training computes with on a CPU."""
        return max(1, int(self.cpus_per_trial))

    @property
    def storage_url(self) -> str:
        return self.storage or sqlite_url(self.folder / "study.db")

    @property
    def checkpoints(self) -> str:
        """Where trials keep checkpoints and weights: a path, or a URI."""
        if self.storage_path is None:
            return str(self.folder.absolute() / "tune" / "checkpoints")
        place = self.storage_path if is_uri(self.storage_path) else os.path.abspath(self.storage_path)
        return join(place, self.name)

    @property
    def data(self) -> DataConfig:
        data_dir = self.data_dir and os.path.abspath(self.data_dir)
        return DataConfig(name=self.dataset, data_dir=data_dir)

    @property
    def attack(self) -> dict[str, object]:
        """The fields of EvalConfig that say how accuracy under attack is measured."""
        return {"attack_norm": self.attack_norm, "eps": self.eps, "attack_steps": self.attack_steps}

    @property
    def evaluation(self) -> EvalConfig:
        return EvalConfig(
            **self.attack,
            examples=self.eval_examples,
            curve_examples=max(1, self.eval_examples // 4),
        )

    @property
    def identity(self) -> dict[str, object]:
        """The settings that must stay the same while a study goes on."""
        return normalised(self.model_dump(mode="json", exclude=RUN_SETTINGS))


def from_layers(
    given: dict[str, object],
    stored: dict[str, object] | None,
    defaults: dict[str, object],
    kind: type[StudySettings] = StudySettings,
) -> StudySettings:
    """What the user gave, over what the study was made with, over the space's defaults, as settings of a `kind`.

    Raises:
        InputError: If a value is not accepted, or differs from the study's own.
    """
    unknown = [field for field in defaults if field not in kind.model_fields]
    if unknown:
        raise InputError(f"DEFAULTS: {nearest(unknown[0], kind.model_fields)}")
    kept = {} if stored is None else ADDED_LATER | stored
    if stored is not None and (norm := given.get("attack_norm", kept["attack_norm"])) != kept["attack_norm"]:
        refuse([difference("attack_norm", norm, kept)], given["name"], NEW_NAME)  # before its radius is looked at
    if given.get("sampler", "front") != "front":  # another one than before is not steered any more
        kept, defaults = (
            {field: value for field, value in layer.items() if field not in ONLY_FRONT} for layer in (kept, defaults)
        )
    try:
        settings = kind(**{**defaults, **kept, **given})
    except ValidationError as error:
        raise InputError(one_line(error)) from None
    if stored is not None:
        refuse_differences(settings, stored)
    return settings


def normalised(settings: dict[str, object]) -> dict[str, object]:
    """A space of the user's own is the file's name; where the file lies may change."""
    space = str(settings.get("space", ""))
    return settings | ({"space": Path(space).name} if space.endswith(".py") else {})


def refuse_differences(settings: StudySettings, stored: dict[str, object]) -> None:
    """Raises:
    InputError: If the study was made with other settings; names each, both values.
    """
    stored = ADDED_LATER | stored
    differing = [
        difference(field, value, stored)
        for field, value in settings.identity.items()
        if field in stored and value != normalised(stored)[field]
    ]
    if differing:
        refuse(differing, settings.name, settings.accepted)


def difference(field: str, value: object, stored: dict[str, object]) -> str:
    return f"{field} {value!r} (the study has {stored[field]!r})"


def refuse(differing: list[str], name: object, accepted: str) -> None:
    raise InputError(f"name: {name!r} holds a study with other settings: {', '.join(differing)}; accepted: {accepted}")


def fraction(text: str) -> float:
    """`0.1`, `8/255` or `1.5/255` as a number.

    Raises:
        ValueError: If `text` is none of that kind.
    """
    try:
        if "/" not in text:
            return float(text)
        above, below = map(Fraction, text.split("/"))
        return float(above / below)
    except (ZeroDivisionError, OverflowError):
        raise ValueError(text) from None


def sqlite_url(path: Path) -> str:
    """Of the database in that file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path)).render_as_string()
