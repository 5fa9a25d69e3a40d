"""Search spaces: found by name or path, tried out before a study starts, turned into trial configurations."""

import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

import search_spaces
from study.settings import ADDED_LATER, StudySettings
from trainables.config import TrialConfig, trial_config
from trainables.errors import InputError, nearest

N_TRIED = 50  # random draws from a space before a study starts
MAX_LABEL = 80  # bytes: a label is part of file names
PLAIN = (type(None), bool, int, float, str)  # what a database gives back as it was
PLAIN_NAMES = ("None", "bool", "int", "float", "str")


@dataclass(frozen=True)
class Space:
    """One file of search_spaces/, or the user's own of the same shape."""

    path: Path
    function: Callable[[optuna.Trial], dict[str, object]]
    baselines: dict[str, dict[str, object]]
    defaults: dict[str, object]
    source: bytes = b""  # of the file


def names() -> list[str]:
    """The spaces that come with the project."""
    folder = Path(search_spaces.__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def load(name_or_path: str) -> Space:
    """Raises:
    InputError: If there is no such space, or its file raises or lacks `space`.
    """
    if name_or_path in names():
        path = Path(search_spaces.__file__).parent / f"{name_or_path}.py"
    elif name_or_path.endswith(".py"):
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(f"space: {name_or_path!r} given, no such file; accepted: a Python file or a space's name")
    else:
        raise InputError(f"space: {nearest(name_or_path, names())}, or a path to a Python file")
    module, source = _execute(path)
    function = getattr(module, "space", None)
    if not callable(function):
        raise InputError(f"space: {path} has no function `space`; accepted: a file with space(trial) -> dict")
    baselines, defaults = getattr(module, "BASELINES", {}), getattr(module, "DEFAULTS", {})
    for field, value in [("BASELINES", baselines), ("DEFAULTS", defaults)]:
        if not isinstance(value, dict):
            raise InputError(f"{field}: {type(value).__name__} given in {path}; accepted: a dict")
    for label, params in baselines.items():
        if not isinstance(label, str) or not (
            label.strip() and label.isprintable() and len(label.encode()) <= MAX_LABEL
        ):
            accepted = f"1 to {MAX_LABEL} characters (bytes in UTF-8), all of them printable"
            raise InputError(f"BASELINES: label {label!r:.60} given in {path}; accepted: {accepted}")
        if not isinstance(params, dict):
            raise InputError(
                f"BASELINES: {label!r} is {type(params).__name__} in {path}; accepted: a dict of parameters"
            )
        for field, value in params.items():
            if not isinstance(field, str):
                raise InputError(f"BASELINES: {label!r}: parameter {field!r} given; accepted: a field's name")
            if type(value) not in PLAIN:
                raise InputError(f"BASELINES: {label!r}: {field}: {value!r} given; accepted: {', '.join(PLAIN_NAMES)}")
    return Space(path, function, baselines, defaults, source)


def _execute(path: Path) -> tuple[ModuleType, bytes]:
    """The file as a module, and what stood in it then; unlike an import, leaves no `__pycache__` beside it."""
    module = ModuleType(f"space_{path.stem}")
    module.__file__ = str(path.absolute())
    sys.modules[module.__name__] = module  # dataclasses look for it there
    try:
        source = path.read_bytes()
        exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        raise _users_line(path, error) from None
    return module, source


def _users_line(path: Path, error: BaseException) -> InputError:
    """The user's own line that raised, in one line."""
    if isinstance(error, SyntaxError) and error.lineno:
        return InputError(f"space: {path}:{error.lineno}: SyntaxError: {error.msg}: {(error.text or '').strip()}")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.absolute())]
    place = f"{path}:{frames[-1].lineno}: " if frames else f"{path}: "
    source = f" in `{frames[-1].line}`" if frames and frames[-1].line else ""
    message = (str(error).strip() or "no message").splitlines()[0]
    return InputError(f"space: {place}{type(error).__name__}: {message}{source}")


def configure(space: Space, settings: StudySettings, trial: optuna.Trial) -> TrialConfig:
    """The trial's configuration: what the space suggests and returns, and what the study settles.

    Raises:
        InputError: If the space raises, or suggests or returns what TrialConfig does not accept, or
            the trial is a published configuration that lacks a parameter.
    """
    label = trial.user_attrs.get("label")
    try:
        constants = space.function(trial)
    except (InputError, SQLAlchemyError, StorageInternalError):
        raise  # a storage that fails while a value is suggested is no mistake of the space
    except (Exception, SystemExit) as error:
        under = f", under {label!r} of BASELINES" if label in space.baselines else ""
        raise InputError(f"{_users_line(space.path, error)}{under}") from None
    if not isinstance(constants, dict | None):
        raise InputError(f"space: {space.path} returned {type(constants).__name__}; accepted: a dict of constants")
    constants = dict(constants or {})
    for field in constants:
        if not isinstance(field, str):
            raise InputError(f"space: {space.path} returned a field {field!r}; accepted: names of fields")
    if label in space.baselines:
        refuse_inexact(space, label, trial, constants)
    if settings.depth is not None:
        if "depth" in trial.params:
            raise InputError(f"depth: {settings.depth} given, but {space.path} suggests it; accepted: one of the two")
        constants["depth"] = settings.depth
    refuse_another_norms_sizes(space, settings, {*constants, *trial.params})
    settled = {"seed": settings.seed + trial.number, "attack_norm": settings.attack_norm, "eps": settings.eps}
    for field, value in settled.items():
        if field not in trial.params:
            constants.setdefault(field, value)
    twice = sorted(set(constants) & set(trial.params))
    if twice:
        raise InputError(f"{twice[0]}: both suggested and returned by {space.path}; accepted: one of the two")
    return trial_config(constants | trial.params)


def refuse_another_norms_sizes(space: Space, settings: StudySettings, fields: set[str]) -> None:
    """Raises:
    InputError: If the study attacks in another norm than the space is for, and of `fields`, which the space sets, one
        is a radius or a step.
    """
    own = ADDED_LATER | space.defaults
    sizes = sorted(fields & {"eps", "step_size"})
    if sizes and settings.attack_norm != own["attack_norm"] and "attack_norm" not in fields:
        theirs = f"{space.path} sets {sizes[0]} for {own['attack_norm']!r}"
        raise InputError(
            f"attack_norm: {settings.attack_norm!r} given, but {theirs}; "
            "accepted: that norm, or a space that sets attack_norm too, or has it in DEFAULTS"
        )


def try_out(
    space: Space, settings: StudySettings, n_train: int, known: Mapping[str, BaseDistribution] = MappingProxyType({})
) -> Space:
    """Draw every published configuration and some random ones, so that a mistake shows before anything is written.

    Args:
        space: As it was loaded.
        settings: Of the study.
        n_train: Training images.
        known: What the study's trials so far were drawn from.

    Returns:
        The space, with the published configurations less what is constant: nothing that Optuna would ignore.

    Raises:
        InputError: If a configuration is not accepted, a published one is not exactly one of the space, or a
            batch is larger than the training set; or a parameter is of another kind than the study's, or has
            other choices, which Optuna refuses.
    """
    baselines = {}
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=settings.seed)
    )
    for label, params in space.baselines.items():
        study.enqueue_trial(params, user_attrs={"label": label})
    for label in [*space.baselines, *[None] * N_TRIED]:
        trial = study.ask()
        with warnings.catch_warnings(action="ignore"):  # Optuna's word on what is refused in our own
            config = configure(space, settings, trial)
        refuse_objects(space, trial.distributions)
        refuse_other_choices(space, trial.distributions, known)
        if label is not None:
            baselines[label] = trial.params
        if config.batch_size_schedule.largest > n_train:
            raise InputError(
                f"batch_size_schedule: {config.batch_size_schedule.largest} images in a batch given"
                f"{f' by {label!r}' if label else ''}; accepted: at most the training set ({n_train})"
            )
    return replace(space, baselines=baselines)


def refuse_objects(space: Space, distributions: Mapping[str, BaseDistribution]) -> None:
    """Raises:
    InputError: If a choice is none that the study's database gives back as it was: a tuple, an array's number.
    """
    for field, distribution in distributions.items():
        for choice in getattr(distribution, "choices", ()):
            if type(choice) not in PLAIN:
                raise InputError(
                    f"{field}: choice {choice!r} suggested by {space.path}; accepted: {', '.join(PLAIN_NAMES)}"
                )


def refuse_other_choices(
    space: Space, distributions: Mapping[str, BaseDistribution], known: Mapping[str, BaseDistribution]
) -> None:
    """Raises:
    InputError: If one is not compatible with what trials of that study were drawn from.
    """
    for field in distributions.keys() & known.keys():
        try:
            check_distribution_compatibility(known[field], distributions[field])
        except ValueError:
            raise InputError(
                f"{field}: {kind(distributions[field])} suggested by {space.path}, where the study's trials have "
                f"{kind(known[field])}; accepted: the same, or a new --name"
            ) from None


def kind(distribution: BaseDistribution) -> str:
    """What Optuna does not let change within a study."""
    if isinstance(distribution, CategoricalDistribution):
        return f"choices {', '.join(map(repr, distribution.choices))}"
    return (
        f"{type(distribution).__name__.removesuffix('Distribution').lower()}{', log=True' if distribution.log else ''}"
    )


def refuse_inexact(space: Space, label: str, trial: optuna.Trial, constants: Mapping[str, object]) -> None:
    """What Optuna does with a starting configuration silently is a mistake here: it samples what is left out,
    ignores what is never suggested, and takes what lies out of range.

    Raises:
        InputError: If the published configuration lacks a parameter, has one too many that is not the constant that
            the space returns, or one out of range.
    """
    given, suggested = space.baselines[label], trial.distributions
    wrong = [f"{field} missing" for field in sorted(set(suggested) - set(given))]
    for field in sorted(set(given) - set(suggested)):
        if field not in constants:
            wrong.append(f"{field} never suggested")
        elif not (isinstance(constants[field], PLAIN) and given[field] == constants[field]):
            wrong.append(f"{field} {given[field]!r} where {constants[field]!r} is returned")
    if wrong:
        accepted = ", ".join(suggested) or "none: nothing is suggested"
        raise InputError(f"BASELINES: {label!r}: {'; '.join(wrong)} in {space.path}; accepted: {accepted}")
    for field, distribution in suggested.items():
        if not distribution._contains(distribution.to_internal_repr(given[field])):
            raise InputError(
                f"BASELINES: {label!r}: {field}: {given[field]!r} given; accepted: {in_words(distribution)}"
            )


def in_words(distribution: IntDistribution | FloatDistribution) -> str:
    """What a number may be, e.g. `1 to 9 in steps of 2`."""
    steps = f" in steps of {distribution.step}" if distribution.step not in (None, 1) else ""
    return f"{distribution.low} to {distribution.high}{steps}"
