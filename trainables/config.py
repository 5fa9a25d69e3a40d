"""What one trial is: validated, frozen, without torch."""

import copy
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, Strict, ValidationError, model_validator

from trainables.depth import six_n_plus_two
from trainables.errors import InputError, nearest

Norm = Literal["batchnorm", "robustnorm", "groupnorm", "fixup"]
EvalStatistics = Literal["population", "batch"]
LrSchedule = Literal["constant", "multistep", "linear", "cosine", "onecycle", "exponential", "accelat"]
DatasetName = Literal["digits", "cifar10", "cifar100", "svhn", "imagefolder"]
Training = Literal["natural", "pgd", "fgsm", "free", "trades", "static"]
AttackNorm = Literal["linf", "l2"]
Precision = Literal["tf32", "bf16", "fp32"]
Probe = Literal["hessian", "batch_dependence", "fgsm", "noise", "strong"]


def number(value: object) -> object:
    """Pydantic would take True for 1, and text for the number that it spells."""
    if isinstance(value, bool | str):
        raise ValueError(f"{value!r} given; accepted: a number")
    return value


Whole = Annotated[int, BeforeValidator(number)]
Real = Annotated[float, BeforeValidator(number)]
Flag = Annotated[bool, Strict()]
PositiveInt = Annotated[Whole, Field(ge=1)]
BatchSize = Annotated[Whole, Field(ge=1, le=65536)]
Depth = Annotated[Whole, Field(le=1202), AfterValidator(six_n_plus_two)]
Eps = Annotated[Real, Field(ge=0)]  # radius in pixel units, images in [0, 1]

# Of a radius. No two images are farther apart in l-inf; in l2 they can be, by the root of their number of pixels.
MAX_EPS = {"linf": 1.0, "l2": 100.0}


class Frozen(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of every configuration: immutable, no unknown fields, finite numbers."""


def require_radius(field: str, value: float | None, attack_norm: AttackNorm) -> None:
    """Raises:
    ValueError: If that radius or step, in pixel units, is larger than any that makes sense under the norm.
    """
    if value is not None and value > MAX_EPS[attack_norm]:
        largest = f"at most {MAX_EPS[attack_norm]:g} with attack_norm {attack_norm!r}"
        raise ValueError(f"{field}: {value} given; accepted: {largest}")


class ConstantBatch(Frozen):
    """The same batch size in every epoch."""

    kind: Literal["constant"] = "constant"
    size: BatchSize

    @property
    def largest(self) -> int:
        return self.size


class Growth(Frozen):
    """What the growing schedules share: from `first` up to `last`."""

    first: BatchSize
    last: BatchSize

    @model_validator(mode="after")
    def grows(self) -> "Growth":
        if self.last < self.first:
            raise ValueError(f"last: {self.last} given; accepted: at least first ({self.first})")
        return self

    @property
    def largest(self) -> int:
        return self.last


class GeometricBatch(Growth):
    """Grows by `factor` in equal stages, e.g. 8, 16, 32, 64, 128 (Sasongko et al. 2021)."""

    kind: Literal["geometric"] = "geometric"
    factor: Annotated[Whole, Field(ge=2, le=64)] = 2


class LinearBatch(Growth):
    """Grows by the same amount each epoch, from `first` in the first to `last` in the last."""

    kind: Literal["linear"] = "linear"


class MilestoneBatch(Frozen):
    """`sizes[i]` holds until epoch `milestones[i]` (0-based), the last size to the end."""

    kind: Literal["milestones"] = "milestones"
    sizes: Annotated[tuple[BatchSize, ...], Field(min_length=1)]
    milestones: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def one_milestone_between_sizes(self) -> "MilestoneBatch":
        if len(self.milestones) != len(self.sizes) - 1:
            raise ValueError(
                f"milestones: {len(self.milestones)} given; accepted: one fewer than sizes ({len(self.sizes) - 1})"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: {list(self.milestones)} given; accepted: strictly increasing epochs")
        return self

    @property
    def largest(self) -> int:
        return max(self.sizes)


class PlateauBatch(Growth):
    """Grows by `factor` when validation accuracy has not risen by `min_gain` for `patience` epochs."""

    kind: Literal["plateau"] = "plateau"
    factor: Annotated[Whole, Field(ge=2, le=64)] = 2
    patience: PositiveInt = 2
    min_gain: Annotated[Real, Field(ge=0, le=1)] = 0.005


BatchSizeSchedule = Annotated[
    ConstantBatch | GeometricBatch | LinearBatch | MilestoneBatch | PlateauBatch, Field(discriminator="kind")
]


class TrialConfig(Frozen):
    """One training run.

    `attack_norm`, `eps`, `pgd_steps`, `step_size`, `free_replays` and `trades_beta` belong to adversarial
    training and are read only by the training modes that need them; evaluation has its own. `static`
    training uses images that PGD crafts once, against the initial weights. `precision` is that of training's
    convolutions on CUDA; `bf16` (autocast) computes so on any device.
    """

    depth: Depth = 56
    norm: Norm = "batchnorm"
    eval_statistics: EvalStatistics = "population"
    batch_size_schedule: BatchSizeSchedule = ConstantBatch(size=128)
    lr_batch_ratio: Annotated[Real, Field(gt=0, le=1)] = 0.1 / 128
    lr_follows_batch: Flag = True
    lr_schedule: LrSchedule = "constant"
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    nesterov: Flag = False
    weight_decay: Annotated[Real, Field(ge=0, le=1)] = 5e-4
    epochs: Annotated[Whole, Field(ge=1, le=10000)] = 10
    training: Training = "natural"
    attack_norm: AttackNorm = "linf"
    eps: Eps = 8 / 255
    pgd_steps: Annotated[Whole, Field(ge=1, le=1000)] = 7
    step_size: Annotated[Real, Field(gt=0)] | None = None  # pixel units; None: the recipe's own
    free_replays: Annotated[Whole, Field(ge=1, le=100)] = 4
    trades_beta: Annotated[Real, Field(ge=0, le=1000)] = 6.0
    precision: Precision = "tf32"
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def consistent(self) -> "TrialConfig":
        if self.eval_statistics == "batch" and self.norm not in ("batchnorm", "robustnorm"):
            raise ValueError(
                f"eval_statistics: 'batch' given with norm {self.norm!r}; accepted: 'population', "
                "or norm 'batchnorm' or 'robustnorm'"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: True given with momentum 0; accepted: False, or momentum above 0")
        require_radius("eps", self.eps, self.attack_norm)
        require_radius("step_size", self.step_size, self.attack_norm)
        return self


class DataConfig(Frozen):
    """Which images."""

    name: DatasetName = "digits"
    data_dir: str | None = None


class EvalConfig(Frozen):
    """How a trial is judged, by PGD (Madry et al. 2018).

    `curve_examples` validation images are attacked after each epoch, `examples` of `split` at the
    trial's end, when `probes` measure what else is asked for. A search never asks for test. The
    weights attacked are those being judged, or `initial` ones, against which images are crafted once. The
    probe `strong` adds accuracy under FGSM to every epoch.
    """

    split: Literal["validation", "test"] = "validation"

    attack_norm: AttackNorm = "linf"
    eps: Eps = 8 / 255
    attack_steps: Annotated[Whole, Field(ge=1, le=10000)] = 10
    examples: PositiveInt = 1000
    curve_examples: PositiveInt = 250
    attacked_weights: Literal["current", "initial"] = "current"
    probes: tuple[Probe, ...] = ()
    strong_examples: PositiveInt = 50  # of `examples`, the first, that the probe `strong` attacks

    @model_validator(mode="after")
    def within_reach(self) -> "EvalConfig":
        require_radius("eps", self.eps, self.attack_norm)
        return self


def nest(params: dict[str, object]) -> dict[str, object]:
    """Dotted names to nested dicts: `{"a.b": 1}` to `{"a": {"b": 1}}`."""
    nested: dict[str, object] = {}
    for name, value in params.items():
        *parents, leaf = name.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"{name}: given beside {parent}; accepted: one of the two")
        if leaf in node:
            raise InputError(f"{name}: given twice; accepted: one value")
        node[leaf] = copy.deepcopy(value) if isinstance(value, dict) else value  # of the caller, who may use it again
    return nested


def one_line(error: ValidationError) -> str:
    """The first mistake pydantic found: field, value given, values accepted."""
    errors = error.errors()
    # A name that nobody knows says more than the one that is missing in its place.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    kind, given, context = first["type"], first["input"], first.get("ctx", {})
    field = ".".join(str(part) for part in first["loc"] if part not in BATCH_KINDS)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if kind == "extra_forbidden":
        name = str(first["loc"][-1])
        return f"{field}: unknown field {nearest(name, fields_at(error.title, first['loc']))}{more}"
    if kind == "literal_error":
        accepted = [name.strip("' ") for name in context["expected"].replace(" or ", ", ").split(",")]
        return f"{field}: {nearest(given, accepted)}{more}"
    if kind == "union_tag_invalid":
        return f"{field}.kind: {nearest(context['tag'], BATCH_KINDS)}{more}"
    if kind == "value_error":
        message = str(context["error"])
        return (f"{field}: {message}" if field and not message.startswith(field) else message) + more
    if kind == "union_tag_not_found":
        return f"{field}.kind: nothing given; accepted: {', '.join(BATCH_KINDS)}{more}"
    if kind == "missing":
        return f"{field}: nothing given; accepted: a value{more}"
    accepted = first["msg"].removeprefix("Input should be ")
    return f"{field}: {given!r} given; accepted: {accepted}{more}"


def fields_at(model: str, place: tuple[int | str, ...]) -> tuple[str, ...]:
    """The fields that are known where an unknown one was given."""
    kind = place[-2] if len(place) > 1 else None
    return tuple(BATCH_SCHEDULES[kind].model_fields) if kind in BATCH_SCHEDULES else MODEL_FIELDS.get(model, ())


BATCH_SCHEDULES = {
    "constant": ConstantBatch,
    "geometric": GeometricBatch,
    "linear": LinearBatch,
    "milestones": MilestoneBatch,
    "plateau": PlateauBatch,
}
BATCH_KINDS = tuple(BATCH_SCHEDULES)
MODEL_FIELDS = {model.__name__: tuple(model.model_fields) for model in (TrialConfig, DataConfig, EvalConfig)}


def trial_config(params: dict[str, object]) -> TrialConfig:
    """TrialConfig from suggested and constant parameters, dotted names nested.

    Raises:
        InputError: One line that names the field, what was given and what is accepted.
    """
    try:
        config = TrialConfig(**nest(params))
    except ValidationError as error:
        raise InputError(one_line(error)) from None
    require_craftable(config)
    return config


def require_craftable(config: TrialConfig) -> None:
    """Raises:
    InputError: If images are to be crafted against initial weights whose logits do not depend on the image. (No rule of
        TrialConfig: studies hold such trials that were trained before it was one.)
    """
    if config.training == "static" and config.norm == "fixup":
        raise InputError(
            "training: 'static' given with norm 'fixup', whose untrained logits do not depend on the image: "
            "no attack could be crafted; accepted: another norm, or another training"
        )
