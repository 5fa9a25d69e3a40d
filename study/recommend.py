"""Name one configuration of the study NAME: which, why, how sure that is, and the command that trains it.

With --max-seconds the most accurate within that time; with --min-adv-accuracy the fastest of at least that accuracy;
with both the most accurate that satisfies both; with neither the knee of the front, or the most accurate where it has
none. What `study.confirm` measured counts where there is any, else the search's own figures.
"""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from pathlib import Path

import click
import optuna
from optuna.trial import FrozenTrial
from safetensors import SafetensorError, safe_open

from study import cli, members, storage
from study.folders import require_own_folder
from study.front import knee, non_dominated
from study.results import (
    attack_text,
    describe,
    flatten,
    front_of,
    holds_weights,
    is_complete,
    read_confirmed,
    weights_name,
    wilson,
)
from trainables.errors import InputError

WEAK_PGD = {"autoattack", "more_steps"}  # gates whose failure another figure mends: AutoAttack's
CHANCE = {"digits": 0.1, "cifar10": 0.1, "cifar100": 0.01, "svhn": 0.196}  # the commonest class's share of test


@dataclass(frozen=True)
class Candidate:
    """One configuration with what is known of it; intervals are of 95 %, NaN where there are no bounds."""

    number: int
    name: str
    seconds: float
    seconds_interval: tuple[float, float]
    adversarial: float
    adversarial_interval: tuple[float, float]
    clean: float
    n_examples: int
    n_seeds: int = 1
    autoattack: tuple[float, float, int] | None = None  # accuracy, that of PGD on the same images, how many
    autoattack_interval: tuple[float, float] = (math.nan, math.nan)
    front_probability: float = math.nan
    gates_failed: str = ""
    n_failed: int = 0  # trainings that its figures do not hold
    objective: str = "measured"  # or calibrated: what its seconds are

    @property
    def failed(self) -> set[str]:
        """Gates, and `training` where not all of its trainings ran to their end."""
        return set(self.gates_failed.split("; ")) - {""} | ({"training"} if self.n_failed else set())

    @property
    def point(self) -> tuple[float, float]:
        return self.adversarial, self.seconds

    @property
    def attacked_strongly(self) -> "Candidate":
        """This one with its accuracy under AutoAttack in the place of that under PGD.

        Not the share of the few images that AutoAttack saw: PGD's accuracy on all images, less what AutoAttack takes
        off on those few, and never more than PGD's. The interval is that of the few alone, moved, its farther end on
        both sides: wider than it need be, but of none or all of a few images it would end at the figure itself.

        Source: Cochran 1977, Sampling Techniques, section 7.2, the difference estimator.
        """
        strong, pgd, _ = self.autoattack
        accuracy = round(min(max(self.adversarial - (pgd - strong), 0.0), self.adversarial), 9)  # as it is printed
        half = max(abs(bound - strong) for bound in self.autoattack_interval)
        interval = (max(accuracy - half, 0.0), min(accuracy + half, 1.0))
        return replace(self, adversarial=accuracy, adversarial_interval=interval)


@dataclass(frozen=True)
class Choice:
    """A candidate, and why it was taken."""

    candidate: Candidate
    reasons: list[str]


@click.command(name="recommend", help=__doc__)
@click.option("--max-seconds", type=float, help="The most that a training may take.")
@click.option("--min-adv-accuracy", type=cli.Fraction(), help="The least adversarial accuracy, e.g. 0.4.")
@cli.of_a_study
def command(
    name: str, max_seconds: float | None, min_adv_accuracy: float | None, results_dir: str, url: str | None
) -> int:
    require_limits(max_seconds, min_adv_accuracy)
    study = storage.named(name, results_dir, url)
    require_own_folder(study, results_dir, url)
    trials = study.get_trials(deepcopy=False)
    front = front_of(trials)
    if not front:
        members.require_a_front(trials)
    table = Path(results_dir) / name / "confirmed.csv"
    known = confirmed(table)
    complete = {trial.number for trial in trials if is_complete(trial)}
    if any(candidate.number not in complete for candidate in known):
        raise InputError(f"{table}: trials that {name!r} has not; accepted: what study.confirm wrote of this study")
    candidates = [candidate for candidate in known if candidate.n_seeds]
    failed = [candidate for candidate in known if candidate.n_failed and not candidate.n_seeds]
    untrainable = {members.configuration(trials[candidate.number]) for candidate in failed}
    left = [trial for trial in front if members.configuration(trial) not in untrainable]
    if not candidates and not left:
        raise InputError(f"name: {name!r} given, all of whose front failed when confirmed; accepted: another study")
    objective = study.user_attrs.get("objective", "measured")
    pool = candidates or [searched(trial, objective) for trial in left]
    choice = choose(pool, max_seconds, min_adv_accuracy, chance(study.user_attrs["settings"]["dataset"], table.parent))
    trial = trials[choice.candidate.number]
    place = storage.location(results_dir, url)
    tried = {members.configuration(trials[candidate.number]) for candidate in candidates}
    missing = [trial for trial in left if members.configuration(trial) not in tried] if candidates else []
    basis = failed_lines(failed) + basis_lines(study, front, candidates, missing, shlex.quote(name) + place)
    for line in lines(choice, study, trial, table.parent, basis):
        click.echo(line)
    click.echo(f"\nTrain it: python -m study.train {shlex.quote(name)} {trial.number}{place}")
    return 0


def require_limits(max_seconds: float | None, min_adv_accuracy: float | None) -> None:
    """Raises:
    InputError: If one of them can't be a limit.
    """
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"max_seconds: {max_seconds} given; accepted: seconds above 0")
    if min_adv_accuracy is not None and not 0 <= min_adv_accuracy <= 1:
        raise InputError(f"min_adv_accuracy: {min_adv_accuracy} given; accepted: a fraction from 0 to 1")


def confirmed(path: Path) -> list[Candidate]:
    """What `study.confirm` wrote of each member, also of one without a complete training; none where it wrote nothing.

    Raises:
        InputError: If the file is not one of its.
    """
    return [_from_row(row) for row in read_confirmed(path).to_dict("records")] if path.exists() else []


def _from_row(row: dict[str, object]) -> Candidate:
    return Candidate(
        row["number"],
        row["name"],
        row["seconds_mean"],
        (row["seconds_low"], row["seconds_high"]),
        row["adversarial_mean"],
        (row["adversarial_low"], row["adversarial_high"]),
        row["clean_mean"],
        row["n_examples"],
        row["n_seeds"],
        (row["autoattack_mean"], row["autoattack_pgd"], row["n_attack_examples"]),
        (row["autoattack_low"], row["autoattack_high"]),
        row["front_probability"],
        row["gates_failed"],
        row["n_failed"],
        row["objective"],
    )


def searched(trial: FrozenTrial, objective: str) -> Candidate:
    """What the search itself measured: one training, judged on validation images."""
    accuracy, seconds = trial.values
    n = trial.user_attrs["n_examples"]
    none = (math.nan, math.nan)
    clean = trial.user_attrs["clean_accuracy"]
    interval = wilson(accuracy, n)
    return Candidate(trial.number, describe(trial), seconds, none, accuracy, interval, clean, n, objective=objective)


def chance(dataset: str, folder: Path) -> float | None:
    """Clean accuracy of a network that has learnt nothing; None where it is not known without the images.

    Of the user's own images the front's weights in the study's `folder` tell how many classes they have.
    """
    if dataset in CHANCE:
        return CHANCE[dataset]
    for path in (folder / "models").glob("*.safetensors"):
        try:
            with safe_open(path, "numpy") as file:
                return 1 / int(file.metadata()["num_classes"])
        except (OSError, SafetensorError, TypeError, KeyError, ValueError):  # TypeError: a file without metadata
            continue
    return None


def failed_lines(failed: Sequence[Candidate]) -> list[str]:
    """What became of members of which no training ran to its end."""
    return [
        f"#{candidate.number} {candidate.name} was left out: {failures(candidate)} when confirmed, on fresh seeds."
        for candidate in failed
    ]


def failures(candidate: Candidate) -> str:
    """How many of its trainings failed, for a sentence."""
    n, total = candidate.n_failed, candidate.n_failed + candidate.n_seeds
    return f"{n} of its {total} trainings failed" if candidate.n_seeds else f"all of its trainings ({n}) failed"


def basis_lines(
    study: optuna.Study,
    front: Sequence[FrozenTrial],
    candidates: Sequence[Candidate],
    missing: Sequence[FrozenTrial],
    this: str,
) -> list[str]:
    """What the figures are, and what is missing.

    Args:
        study: The search.
        front: Its front.
        candidates: What was confirmed.
        missing: Members of the front that were not.
        this: The study in a command.
    """
    ended, found = storage.n_finished(study), []
    if candidates:
        flattered = f" The best of {len(candidates)} by these is a little flattered." if len(candidates) > 1 else ""
        found.append(f"Figures are confirmed: fresh seeds, test images.{flattered}")
        if missing:
            numbers = ", ".join(f"#{trial.number}" for trial in missing)
            found.append(
                f"{len(missing)} of {len(front)} members of the front are not confirmed and were left out: {numbers}."
            )
    else:
        found.append(
            "Figures are not confirmed, but the search's own: one seed each on validation images, and optimistic "
            f"because the best of {ended} trials were kept. Confirm them: python -m study.confirm {this}"
        )
    if storage.is_unfinished(study):
        found.append(
            f"The search is unfinished: {ended} of {study.user_attrs['settings']['trials']} trials have ended."
        )
    return found


def choose(
    candidates: Sequence[Candidate],
    max_seconds: float | None,
    min_adv_accuracy: float | None,
    chance: float | None = None,
) -> Choice:
    """One of the candidates.

    Those whose clean accuracy may be `chance`, and of the others those that failed a gate or in a training, are left
    out as long as others remain; but where the search's PGD was only too weak for some, all are compared by their
    accuracy under AutoAttack.

    Raises:
        InputError: If none satisfies the limits; says what would.
    """
    able = [each for each in candidates if chance is None or wilson(each.clean, each.n_examples)[0] > chance]
    left, reasons = able or list(candidates), []
    at_chance = f"clean accuracy is, or by its 95 % interval may be, no better than chance ({chance})"
    if not able:
        reasons.append(f"Every candidate's {at_chance}, so that none was left out for it.")
    elif len(able) < len(candidates):
        reasons.append(
            f"{len(candidates) - len(able)} of {len(candidates)} candidates were left out: their {at_chance}."
        )
    sound = [candidate for candidate in left if not candidate.failed - WEAK_PGD]
    pool, noun = sound or left, "candidates" if len(left) == len(candidates) else "others"
    if sound and len(sound) < len(left):
        reasons.append(
            f"{len(left) - len(sound)} of {len(left)} {noun} failed a gate or in a training and were left out."
        )
    elif not sound:
        reasons.append(f"All {noun} failed a gate or in a training, so that none was left out for it.")
    weak = any(candidate.failed & WEAK_PGD for candidate in pool)
    if weak:
        pool = [candidate.attacked_strongly for candidate in pool]
    fitting = [
        candidate
        for candidate in pool
        if (max_seconds is None or candidate.seconds <= max_seconds)
        and (min_adv_accuracy is None or candidate.adversarial >= min_adv_accuracy)
    ]
    if not fitting:
        raise InputError(nothing_fits(pool, max_seconds, min_adv_accuracy) + (" under AutoAttack" if weak else ""))
    limits = limits_text(max_seconds, min_adv_accuracy)
    if max_seconds is not None:
        taken = max(fitting, key=lambda candidate: (candidate.adversarial, -candidate.seconds))
        reasons.insert(0, f"It is the most accurate under attack of {of(len(fitting), len(pool))} {limits}.")
    elif min_adv_accuracy is not None:
        taken = min(fitting, key=lambda candidate: (candidate.seconds, -candidate.adversarial))
        reasons.insert(0, f"It is the fastest of {of(len(fitting), len(pool))} {limits}.")
    else:
        taken = fitting[knee([candidate.point for candidate in fitting])]
        reasons.insert(0, knee_text(fitting, taken))
    if weak:
        reasons.append(
            "The search's PGD was too weak for some (see gates.csv), so accuracies are compared by AutoAttack's: PGD's "
            "on all images, less what AutoAttack takes off on those that it was tried on. "
            f"Of #{taken.number} that is {taken.adversarial:.3f}."
        )
    reasons += doubts(taken, max_seconds, min_adv_accuracy) + rivals_text(taken, fitting)
    return Choice(next(candidate for candidate in candidates if candidate.number == taken.number), reasons)


def limits_text(max_seconds: float | None, min_adv_accuracy: float | None) -> str:
    limits = []
    if max_seconds is not None:
        limits.append(f"of at most {max_seconds:g} seconds")
    if min_adv_accuracy is not None:
        limits.append(f"of at least {min_adv_accuracy:g} accuracy under attack")
    return " and ".join(limits)


def of(n: int, total: int) -> str:
    return f"{n} of {total} configurations" if total > 1 else "one configuration"


def nothing_fits(pool: Sequence[Candidate], max_seconds: float | None, min_adv_accuracy: float | None) -> str:
    fastest = min(pool, key=lambda candidate: candidate.seconds)
    best = max(pool, key=lambda candidate: candidate.adversarial)
    if max_seconds is not None and fastest.seconds > max_seconds:
        least = short(fastest.seconds, ROUND_CEILING)
        return f"max_seconds: {max_seconds:g} given; accepted: at least {least}, #{fastest.number}'s"
    if min_adv_accuracy is not None and best.adversarial < min_adv_accuracy:
        most = short(best.adversarial, ROUND_FLOOR)
        return f"min_adv_accuracy: {min_adv_accuracy:g} given; accepted: at most {most}, #{best.number}'s"
    enough = min(
        (candidate for candidate in pool if candidate.adversarial >= min_adv_accuracy),
        key=lambda candidate: candidate.seconds,
    )
    return (
        f"max_seconds: {max_seconds:g} given with min_adv_accuracy {min_adv_accuracy:g}; accepted: at least "
        f"{short(enough.seconds, ROUND_CEILING)}, #{enough.number}'s"
    )


def short(value: float, rounding: str) -> str:
    """Four digits, rounded to the side that satisfies the limit when it is given so."""
    return f"{float(Context(prec=4, rounding=rounding).create_decimal(repr(float(value)))):.4g}"


def knee_text(pool: Sequence[Candidate], taken: Candidate) -> str:
    mask = non_dominated([candidate.point for candidate in pool])
    front = [candidate for candidate, keep in zip(pool, mask, strict=True) if keep]
    if len({candidate.point for candidate in front}) < 3:
        return f"It is the most accurate of a front of {len(front)}: too few for a knee."
    fastest, best = (f(front, key=lambda candidate: candidate.seconds) for f in (min, max))
    line = (
        f"above the line from the fastest (#{fastest.number}: {fastest.seconds:.1f} s, {fastest.adversarial:.3f}) to "
        f"the most accurate (#{best.number}: {best.seconds:.1f} s, {best.adversarial:.3f}), "
        "seconds on a logarithmic scale"
    )
    if taken.point == best.point:
        return (
            f"It is the most accurate of a front of {len(front)} without a knee: none lies {line}. For less time give "
            "--max-seconds or --min-adv-accuracy."
        )
    return f"It is the knee of the front of {len(front)}: farthest {line}."


def doubts(taken: Candidate, max_seconds: float | None, min_adv_accuracy: float | None) -> list[str]:
    """What speaks against relying on it."""
    found = []
    if max_seconds is not None and taken.seconds_interval[1] > max_seconds:
        found.append(f"The interval of its mean seconds reaches beyond {max_seconds:g}.")
    if min_adv_accuracy is not None and taken.adversarial_interval[0] < min_adv_accuracy:
        found.append(f"The interval of its accuracy under attack reaches below {min_adv_accuracy:g}.")
    if taken.gates_failed:
        found.append(f"Gates it failed: {taken.gates_failed} (gates.csv says what that means).")
    if taken.n_failed:
        found.append(f"{failures(taken)}: its figures are of the others (confirm/trials.csv says why they failed).")
    return found


def rivals_text(taken: Candidate, fitting: Sequence[Candidate]) -> list[str]:
    """The fastest of those that take less time, and that the intervals of accuracy do not tell from `taken`."""
    least = taken.adversarial_interval[0]
    rivals = [rival for rival in fitting if rival.seconds < taken.seconds and rival.adversarial_interval[1] >= least]
    if not rivals:
        return []
    fastest = min(rivals, key=lambda rival: rival.seconds)
    others = f", the fastest of {len(rivals)} such" if len(rivals) > 1 else ""
    return [
        f"Faster, with an interval of accuracy under attack that overlaps this one's: #{fastest.number} "
        f"({fastest.seconds:.1f} s, {fastest.adversarial:.3f}){others}."
    ]


def lines(choice: Choice, study: optuna.Study, trial: FrozenTrial, folder: Path, basis: Sequence[str]) -> list[str]:
    """What is printed of the choice, which `trial` of the study is."""
    taken, settings = choice.candidate, study.user_attrs["settings"]
    seeds = f"mean of {taken.n_seeds} seed{'s' if taken.n_seeds > 1 else ''}" if taken.autoattack else "one training"
    images = f"{taken.n_examples} {'test' if taken.autoattack else 'validation'} images"
    interval_of = "" if math.isnan(taken.adversarial_interval[0]) else "; 95 % interval, Wilson"
    if interval_of and taken.autoattack:
        interval_of = "; 95 % interval, over images" + (" and seeds" if taken.n_seeds > 1 else "")
    shown = [
        f"#{taken.number} {taken.name}",
        "",
        row("seconds", taken.seconds, taken.seconds_interval, 1, f"{taken.objective}, {seeds}"),
        row(
            "adversarial accuracy",
            taken.adversarial,
            taken.adversarial_interval,
            3,
            f"{attack_text(settings)}, {images}{interval_of}",
        ),
    ]
    if taken.autoattack:
        accuracy, pgd, n = taken.autoattack
        note = f"standard version, first {n} test images, of which PGD leaves {pgd:.3f}"
        shown.append(row("AutoAttack", accuracy, taken.autoattack_interval, 3, note))
    shown.append(row("clean accuracy", taken.clean, (math.nan, math.nan), 3, images))
    if not math.isnan(taken.front_probability):
        note = f"probability under PGD-{settings['attack_steps']}, over seeds and images"
        shown.append(row("on the front", taken.front_probability, (math.nan, math.nan), 2, note))
    shown += ["", *(f"Why: {reason}" if i == 0 else f"     {reason}" for i, reason in enumerate(choice.reasons))]
    shown += [*basis, "", "Parameters:"]
    chosen = trial.params or flatten(trial.user_attrs["config"])
    shown += [
        f"  {name:<28} {value:.4g}" if isinstance(value, float) else f"  {name:<28} {value}"
        for name, value in chosen.items()
    ]
    weights = folder / "models" / weights_name(taken.number)
    if holds_weights(weights, trial):
        shown += ["", f"Weights of the search's own training: {weights}"]
    return shown


def row(name: str, value: float, interval: tuple[float, float], digits: int, note: str) -> str:
    bounds = "" if math.isnan(interval[0]) else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    return f"  {name:<21}{f'{value:.{digits}f}{bounds}':<23}{note}"


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
