"""A study's front members trained again with fresh seeds, judged on test and under strong attacks.

Three files of results/<study>/ come from here (and confirm/, the runs' own folder, with their storage):

confirmed.csv, a row per member, those first that were fastest:

    number              of the member's trial in the search
    name                its label, or its norm and batch sizes
    role                `front`, `published`, `front, published`, or `other` (asked for, or has left the front since)
    n_seeds             trainings that ran to their end
    n_failed            trainings that diverged or failed otherwise
    n_examples          test images of clean and adversarial accuracy
    n_attack_examples   the first of them, for AutoAttack and the gates
    objective           `measured` or `calibrated`: what seconds_* are
    clean_*, adversarial_*, autoattack_*, seconds_*
                        each _mean, _std (of seeds; empty for one seed), _low, _high (95 % interval: of seconds
                        Student's t over seeds, empty where it has no bounds, for one seed or equal ones; of accuracies
                        over seeds and test images, see `accuracy_interval`). Accuracies are fractions on test images;
                        `adversarial` is under the search's own PGD; seconds are measured training seconds (calibrated
                        ones where GPUs of several kinds trained), whatever the search's are
    autoattack_pgd      mean accuracy under the search's PGD on the same images as autoattack_*, to compare with it
    front_probability   that the member is on the front of all that were confirmed, by seeds and examples, under the
                        search's own PGD; empty where no member has two seeds, see `front.probability_on_front`
    gates_failed        names of the gates that failed, joined by "; "; empty where all passed
    searched_adversarial, searched_seconds
                        what the search measured: one seed, validation images

gates.csv, a row per member and gate, in the order of confirmed.csv:

    number, name        as above
    gate                e.g. `autoattack`; see GATES
    passed              True or False
    figure, threshold   the gate passes where the figure is at most the threshold; pooled over seeds
    unit                of both: `points` (figure 0.05 is 5 points), `share`, `seeds`
    text                what was found, in a sentence, and what a failure means

Both are written anew by each `python -m study.confirm`, and there is none before the first one.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import fmean, stdev

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table

from study import calibration, gates, images, search, storage
from study.conduct import NOT_STORED, carry_out, command_line, say_end
from study.front import probability_on_front
from study.lock import driver_lock
from study.members import ConfirmSettings, Member, configuration, default_members, fresh_seeds, role
from study.papers.claims import interval
from study.results import attack_text, front_of, is_complete, remove_finished, trials_frame, wilson
from study.settings import Objective, StudySettings
from study.sole_writer import SoleWriter
from trainables.config import TrialConfig
from trainables.errors import InputError
from trainables.files import write_whole
from trainables.stores import Unreachable

Runs = Mapping[int, list[FrozenTrial]]  # a member's number to its trainings that ran to their end

QUANTITIES: dict[str, Callable[[FrozenTrial], float]] = {
    "clean": lambda trial: trial.user_attrs["clean_accuracy"],
    "adversarial": lambda trial: trial.values[0],
    "autoattack": lambda trial: trial.user_attrs["probes"]["strong.autoattack"],
    "seconds": lambda trial: trial.values[1],
}
OVERFITTED = "catastrophic overfitting"  # what a trial that did says in its reason


def confirm(settings: ConfirmSettings, searched: optuna.Study, members: Sequence[Member]) -> int:
    """Train what is missing and write the tables; returns the exit status.

    Raises:
        InputError: If the images cannot be used, or a driver runs this study or its search; nothing is written then.
    """
    _, seen = images.load(settings, searched)
    with ExitStack() as stack:
        if settings.search_folder.exists():  # a search meanwhile would take its share of the device
            stack.enter_context(driver_lock(settings.search_folder))
        opened = partial(images.kept, seen, partial(prepare, settings, members))
        return carry_out(settings, opened, configure, partial(finish, searched))


def n_trials(settings: ConfirmSettings, members: Sequence[Member]) -> int:
    """Trainings of the study in all: those it has, and those of the members that it lacks."""
    study = storage.existing(settings.storage_url, settings.name)
    known = _known(study) if study else set()
    return len(known | {(member.number, seed) for member in members for seed in _seeds(settings)})


def require_same_search(settings: ConfirmSettings, searched: optuna.Study) -> None:
    """Raises:
    InputError: If what has been confirmed under this name are no trials of this search, but of one before it.
    """
    study = storage.existing(settings.storage_url, settings.name)
    of_search = {trial.number: trial for trial in searched.get_trials(deepcopy=False) if is_complete(trial)}
    for trial in study.get_trials(deepcopy=False) if study else []:
        number = trial.user_attrs["member"]
        if number not in of_search or configuration(trial) != configuration(of_search[number]):
            raise InputError(
                f"name: the confirmation in {settings.folder} is of another search: its #{number} has another "
                f"configuration than {searched.study_name!r}'s; accepted: the search it is of, or another name"
            )


def prepare(settings: ConfirmSettings, members: Sequence[Member]) -> optuna.Study:
    """The study as it stands: interrupted trials handed out again, and each member with each seed enqueued once."""
    sampler = optuna.samplers.RandomSampler(seed=settings.seed)  # nothing is left to sample
    study = storage.open_study(SoleWriter(storage.from_url(settings.storage_url)), settings.name, sampler)
    search.requeue_interrupted(study)
    known = _known(study)
    for seed in _seeds(settings):
        for member in members:
            if (member.number, seed) not in known:
                config = member.with_seed(seed).model_dump(mode="json")
                attrs = {"label": member.label, "member": member.number, "name": member.name, "config": config}
                study.enqueue_trial({}, user_attrs=attrs)
    study.set_user_attr("settings", settings.model_dump(mode="json", exclude=NOT_STORED))
    return study


def _seeds(settings: ConfirmSettings) -> list[int]:
    return fresh_seeds(settings.seed, settings.seeds)


def _known(study: optuna.Study) -> set[tuple[int, int]]:
    trials = study.get_trials(deepcopy=False)
    return {(trial.user_attrs["member"], trial.user_attrs["config"]["seed"]) for trial in trials}


def configure(trial: optuna.Trial) -> TrialConfig:
    raise AssertionError(f"trial {trial.number} was handed out without its configuration")


def finish(searched: optuna.Study, study: optuna.Study, settings: StudySettings, console: Console, ending: str) -> None:
    """Write confirmed.csv and gates.csv from the storage, print what they say and what to do next."""
    trials, candidates = study.get_trials(deepcopy=False), searched.get_trials(deepcopy=False)
    judged = judge(trials, settings)
    table = confirmed_frame(trials, candidates, judged, study.user_attrs.get("objective", "measured"))
    write_whole(settings.search_folder / "confirmed.csv", table.to_csv(index=False).encode())
    write_whole(settings.search_folder / "gates.csv", gates_frame(trials, table, judged).to_csv(index=False).encode())
    write_whole(settings.folder / "trials.csv", trials_frame(trials).to_csv(index=False).encode())
    try:
        remove_finished(trials, settings.checkpoints)
    except Unreachable as error:
        console.print(f"Checkpoints stay where they are: {error}", soft_wrap=True)
    (settings.folder / "front.csv").unlink(missing_ok=True)  # a front of single trainings, chosen on test: misleading
    shutil.rmtree(settings.folder / "models", ignore_errors=True)
    console.print(printed(table))
    for line in notes(table, settings, searched, candidates):
        console.print(line, highlight=False, soft_wrap=True)
    if timing := calibration.timing_text(study):
        console.print(timing, highlight=False, soft_wrap=True)
    for line in gate_lines(table, judged):
        console.print(line, highlight=False, soft_wrap=True)
    files = [settings.search_folder / name for name in ("confirmed.csv", "gates.csv")]
    again = command_line(settings, "confirm", settings.search, *those_chosen(trials, candidates))
    use = command_line(settings, "recommend", settings.search)
    say_end(console, study, settings, files, ending, again, f"Which one to use: {use}", "trainings")


def those_chosen(trials: Sequence[FrozenTrial], candidates: Sequence[FrozenTrial]) -> list[str]:
    """The option that names the members of a confirmation, where they are not those that are taken without it."""
    numbers = {trial.user_attrs["member"] for trial in trials}
    if numbers == {member.number for member in default_members(candidates)}:
        return []
    return ["--members", ",".join(map(str, sorted(numbers)))]


def by_member(trials: Sequence[FrozenTrial]) -> Runs:
    """All members, also those without a complete training."""
    runs: dict[int, list[FrozenTrial]] = {trial.user_attrs["member"]: [] for trial in trials}
    for trial in trials:
        if is_complete(trial):
            runs[trial.user_attrs["member"]].append(trial)
    return runs


def judge(trials: Sequence[FrozenTrial], settings: StudySettings) -> dict[int, list[gates.Judged]]:
    """The gates of each member that has a complete training."""
    attack = gates.Attack(settings.eps, settings.attack_steps)
    return {
        number: gates.judge(
            [run.user_attrs["probes"] | {"overfitted": OVERFITTED in run.user_attrs["reason"]} for run in runs], attack
        )
        for number, runs in by_member(trials).items()
        if runs
    }


def confirmed_frame(
    trials: Sequence[FrozenTrial],
    candidates: Sequence[FrozenTrial],
    judged: Mapping[int, list[gates.Judged]],
    objective: Objective = "measured",
) -> pd.DataFrame:
    """confirmed.csv.

    Args:
        trials: Of the confirmation.
        candidates: Of the search.
        judged: The gates of each member.
        objective: Which seconds the trainings' are.
    """
    front = {trial.number for trial in front_of(candidates)}
    by_number = {trial.number: trial for trial in candidates}
    names = {trial.user_attrs["member"]: trial.user_attrs["name"] for trial in trials}
    probability = front_probabilities(by_member(trials))
    rows = []
    for number, runs in by_member(trials).items():
        candidate = by_number[number]
        failed = [trial for trial in trials if trial.user_attrs["member"] == number and trial.state.is_finished()]
        attrs = runs[0].user_attrs if runs else {}
        rows.append(
            {"number": number, "name": names[number], "role": role(candidate, front)}
            | {"n_seeds": len(runs), "n_failed": len(failed) - len(runs)}
            | {"n_examples": attrs.get("n_examples", 0)}
            | {"n_attack_examples": int(attrs["probes"]["strong.n"]) if runs else 0, "objective": objective}
            | {key: value for name in QUANTITIES for key, value in spread(name, runs).items()}
            | {"autoattack_pgd": fmean(run.user_attrs["probes"]["strong.pgd"] for run in runs) if runs else None}
            | {"front_probability": probability.get(number)}
            | {"gates_failed": "; ".join(gate.gate for gate in judged.get(number, []) if not gate.passed)}
            | dict(zip(("searched_adversarial", "searched_seconds"), candidate.values, strict=True))
        )
    return pd.DataFrame(rows).sort_values("seconds_mean", ignore_index=True)


def spread(name: str, runs: Sequence[FrozenTrial]) -> dict[str, float | None]:
    """Mean, deviation over seeds and 95 % interval of one quantity, as columns; None where there is none."""
    values = [QUANTITIES[name](run) for run in runs]
    if not values:
        return {f"{name}_{what}": None for what in ("mean", "std", "low", "high")}
    if name == "seconds":
        _, low, high, _ = interval(values)
        bounds = (max(low, 0.0), high) if np.isfinite(low) else (None, None)
    else:
        attrs = runs[0].user_attrs
        n_examples = int(attrs["probes"]["strong.n"]) if name == "autoattack" else attrs["n_examples"]
        bounds = accuracy_interval(values, n_examples)
    deviation = stdev(values) if len(values) > 1 else None
    columns = dict(zip(("mean", "std", "low", "high"), (fmean(values), deviation, *bounds), strict=True))
    return {f"{name}_{what}": value for what, value in columns.items()}


def accuracy_interval(accuracies: Sequence[float], n_examples: int) -> tuple[float, float]:
    """95 % interval of a recipe's accuracy from networks of several seeds, judged on the same `n_examples` images.

    Seeds and images are samples both: the distances of Student's t interval over seeds and of Wilson's over images,
    squared and added. Conservative, since what images do to single networks is in both. Of one seed, or of seeds that
    agree, the images' alone.

    Source: Zou, Donner 2008, "Construction of confidence limits about effect measures: a general approach".
    """
    mean, _, high, _ = interval(accuracies)
    over_seeds = high - mean if np.isfinite(high) else 0.0
    least, most = wilson(mean, n_examples)
    nearest = round(mean * n_examples) / n_examples  # which `wilson` is of
    low, high = mean - np.hypot(over_seeds, nearest - least), mean + np.hypot(over_seeds, most - nearest)
    return max(float(low), 0.0), min(float(high), 1.0)


def front_probabilities(runs: Runs) -> dict[int, float]:
    """Of each member that has a complete training, on the front of all of them."""
    numbers = [number for number, found in runs.items() if found]
    robust = [[unpack(run) for run in runs[number]] for number in numbers]
    seconds = [[run.values[1] for run in runs[number]] for number in numbers]
    return dict(zip(numbers, probability_on_front(robust, seconds).tolist(), strict=True))


def unpack(run: FrozenTrial) -> np.ndarray:
    """(examples,) of bool: which test images the network leaves right under PGD."""
    packed = np.frombuffer(bytes.fromhex(run.user_attrs["probes"]["strong.robust"]), dtype=np.uint8)
    return np.unpackbits(packed, count=run.user_attrs["n_examples"]).astype(bool)


def gates_frame(
    trials: Sequence[FrozenTrial], table: pd.DataFrame, judged: Mapping[int, list[gates.Judged]]
) -> pd.DataFrame:
    """gates.csv."""
    rows = [
        {"number": number, "name": name, **gate._asdict()}
        for number, name in zip(table["number"], table["name"], strict=True)
        for gate in judged.get(number, [])
    ]
    return pd.DataFrame(rows, columns=["number", "name", *gates.Judged._fields])


def printed(table: pd.DataFrame) -> Table:
    """For a terminal: means, and the farther ends of their intervals."""
    drawn = Table(title="Confirmed on test, fastest first", title_justify="left")
    for heading in ("trial", "seeds", "seconds", "adversarial", "AutoAttack | PGD", "clean", "on front", "gates"):
        words = heading in ("trial", "gates")
        drawn.add_column(heading, justify="left" if words else "right", no_wrap=not words)
    for row in table.to_dict("records"):
        seeds = f"{row['n_seeds']}" + (f" of {row['n_seeds'] + row['n_failed']}" if row["n_failed"] else "")
        failed = row["gates_failed"].count(";") + 1 if row["gates_failed"] else 0
        passed = "–" if not row["n_seeds"] else f"{failed} failed" if failed else "passed"
        chance = "–" if pd.isna(row["front_probability"]) else f"{row['front_probability']:.2f}"
        drawn.add_row(
            f"#{row['number']} {row['name']}",
            seeds,
            cell(row, "seconds", 1),
            cell(row, "adversarial", 3),
            f"{row['autoattack_mean']:.3f} | {row['autoattack_pgd']:.3f}" if row["n_seeds"] else "–",
            f"{row['clean_mean']:.3f}" if row["n_seeds"] else "–",
            chance,
            passed,
        )
    return drawn


def cell(row: Mapping[str, object], name: str, digits: int) -> str:
    mean, low, high = (row[f"{name}_{what}"] for what in ("mean", "low", "high"))
    if pd.isna(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if pd.isna(low) else f" ± {max(mean - low, high - mean):.{digits}f}")


def notes(
    table: pd.DataFrame,
    settings: ConfirmSettings,
    searched: optuna.Study,
    candidates: Sequence[FrozenTrial],
) -> list[str]:
    """What the figures are, and what became of the search's."""
    complete = table[table["n_seeds"] > 0]
    lines = failure_lines(table)
    if len(complete):
        first = complete.iloc[0]
        unknown = ", unknown without a second seed" if complete["front_probability"].isna().all() else ""
        lines.append(
            "±: the farther end of the 95 % interval, of accuracies over seeds and images, of one seed over images "
            "alone; of seconds over seeds. "
            f"Adversarial: {attack_text(settings.attack)}, "
            f"{first['n_examples']} test images. AutoAttack (standard) beside that PGD, and gates: "
            f"the first {first['n_attack_examples']} of them. "
            f"On front: probability under that PGD, over seeds and images{unknown}."
        )
        at_once = settings.concurrent or 1
        lines.append(
            f"Seconds: {first['objective']}, "
            + ("one training at a time on each device." if at_once == 1 else f"up to {at_once} trainings at a time.")
        )
        optimism = fmean(complete["searched_adversarial"] - complete["adversarial_mean"]) * 100
        pace = float(np.exp(np.mean(np.log(complete["seconds_mean"] / complete["searched_seconds"]))))
        lines.append(
            f"The search (one seed each, validation images) said {abs(optimism):.1f} points of adversarial accuracy "
            f"{'more' if optimism >= 0 else 'less'} on average; trainings took {pace:.2f} times the search's "
            f"{searched.user_attrs.get('objective', 'measured')} seconds."
        )
    if storage.is_unfinished(searched):
        ended, asked = storage.n_finished(searched), searched.user_attrs["settings"]["trials"]
        lines.append(f"The search is unfinished ({ended} of {asked} trials have ended): its front may still change.")
    return lines


def failure_lines(table: pd.DataFrame) -> list[str]:
    """Of each member of which a training failed: the figures are those of the others, which flatters it."""
    return [
        f"#{row['number']} {row['name']}: {row['n_failed']} of {row['n_failed'] + row['n_seeds']} trainings failed"
        + ("; its figures are of the others." if row["n_seeds"] else ".")
        for row in table.to_dict("records")
        if row["n_failed"]
    ]


def gate_lines(table: pd.DataFrame, judged: Mapping[int, list[gates.Judged]]) -> list[str]:
    """A line for each gate that failed."""
    names = dict(zip(table["number"], table["name"], strict=True))
    failed = [
        f"  {gate.gate}, #{number} {names[number]}: {gate.text}"
        for number in table["number"]
        for gate in judged.get(number, [])
        if not gate.passed
    ]
    if not judged:
        return []
    if failed:
        return ["Gates that failed:", *failed]
    return ["All gates passed" + (", by the trainings that did not fail." if table["n_failed"].any() else ".")]
