"""A study's report from its storage and folder: one page that opens offline, and the front as a picture."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from study import calibration, examples, figures, importances, picture, storage
from study.front import probability_by_examples
from study.results import (
    GAIN,
    GAIN_PER_HOUR,
    attack_text,
    describe,
    front_hypervolume,
    front_of,
    is_complete,
    percent,
    promised,
    read_confirmed,
    read_gates,
    slowest,
    wilson,
)
from trainables.files import write_whole

N_REASONS = 20  # of stopped and failed trials that are listed
N_BUDGETS = 4
ROUND = ("1", "1.5", "2", "3", "5", "7")  # first digits of a budget

Row = dict[str, object]


def write(study: optuna.Study, folder: Path) -> None:
    """report.html, front.png and front.svg; also of a study without a front."""
    trials = study.get_trials(deepcopy=False)
    settings, objective = study.user_attrs["settings"], study.user_attrs.get("objective", "measured")
    figure = picture.front(trials, title(trials, settings), objective, attack_text(settings))
    for suffix in ("png", "svg"):
        write_whole(folder / f"front.{suffix}", picture.encode(figure, suffix))
    html = page(trials, settings, objective, folder, storage.is_unfinished(study))
    write_whole(folder / "report.html", html.encode())


def title(trials: Sequence[FrozenTrial], settings: Row) -> str:
    n, volume = sum(is_complete(trial) for trial in trials), front_hypervolume(trials)
    reach = f" to {slowest(trials):.3g} s" if n else ""
    return f"{settings['name']}: {settings['dataset']}, {n} complete trials, hypervolume {volume:.4g}{reach}"


def page(
    trials: Sequence[FrozenTrial], settings: Row, objective: str, folder: Path, is_unfinished: bool = False
) -> str:
    """The page, with all it needs inside: figures as JSON, plotly's script, images as data URIs."""
    confirmed, gates = confirmation(folder)
    found = importances.evaluate(trials)
    elsewhere = "" if (folder / "study.db").exists() else " --storage URL"  # which may be secret
    gains = [promised(trials, gain) for gain in (GAIN, GAIN_PER_HOUR)]
    try:
        shown, why_no_examples = examples.make(trials, settings, folder), ""
    except examples.Unavailable as reason:
        shown, why_no_examples = None, str(reason)
    template = Environment(
        loader=PackageLoader("study", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.jinja")
    return template.render(
        settings=settings,
        objective=objective,
        attack=attack_text(settings),
        states=Counter(trial.state.name for trial in trials),
        timing=calibration.error_text(trials),
        is_unfinished=is_unfinished,
        n_ended=sum(trial.state in storage.FINISHED for trial in trials),
        members=member_rows(trials),
        bought=bought(trials),
        hypervolume=front_hypervolume(trials),
        slowest=slowest(trials),
        gains=None if None in gains else [percent(gain) for gain in gains],
        device_hours=sum(map(figures.device_seconds, figures.ended(trials))) / 3600,
        n_with_bars=figures.N_WITH_BARS,
        charts=charts(trials, objective, found, confirmed),
        this=shlex.quote(settings["name"]) + storage.location(str(folder.parent), None) + elsewhere,
        confirmed=records(confirmed),
        gates=records(gates),
        judged=set() if gates is None else set(gates["number"]),
        found=found,
        n_fewest=importances.N_FEWEST,
        n_shuffles=importances.N_SHUFFLES,
        examples=shown,
        why_no_examples=why_no_examples,
        reasons=reasons(trials),
        n_reasons=N_REASONS,
        n_not_placed=sum(
            trial.state in (TrialState.PRUNED, TrialState.FAIL) and figures.last_point(trial, objective) is None
            for trial in trials
        ),
        machine=machine(folder),
        dark=json.dumps(figures.DARK),
        plotlyjs=get_plotlyjs(),
    )


def charts(
    trials: Sequence[FrozenTrial],
    objective: str,
    found: importances.Importances | None,
    confirmed: pd.DataFrame | None,
) -> dict[str, str]:
    """Every figure that there is something to show in, as JSON, by the name of its place on the page."""
    if not front_of(trials):
        return {}
    made: dict[str, go.Figure | None] = {
        "front": figures.front(trials, objective, confirmed),
        "importances": figures.importances(found) if found else None,
        "parallel": figures.parallel_coordinates(trials),
    }
    made |= {f"hypervolume-{over}": chart for over, chart in figures.hypervolume(trials).items()}
    made |= {f"curve-{column}": figures.curves(trials, column, objective) for column in figures.CURVES}
    return {name: chart.to_json() for name, chart in made.items() if chart is not None}  # plotly writes `<` as \u003c


def member_rows(trials: Sequence[FrozenTrial]) -> list[Row]:
    """The front for its table and legend, fastest first, with the colour that stands for each in the curves."""
    members, complete = front_of(trials), [trial for trial in trials if is_complete(trial)]
    chances = probability_by_examples(
        [trial.values for trial in complete], np.array([trial.user_attrs["n_examples"] for trial in complete])
    )
    chance_of = {trial.number: chance for trial, chance in zip(complete, chances, strict=True)}
    rows = []
    for trial, colour in zip(members, figures.colours(len(members)), strict=True):
        (accuracy, seconds), n = trial.values, trial.user_attrs["n_examples"]
        low, high = wilson(accuracy, n)
        row = {"number": trial.number, "name": describe(trial), "colour": colour, "seconds": seconds, "n": n}
        row |= {"accuracy": accuracy, "low": low, "high": high, "clean": trial.user_attrs["clean_accuracy"]}
        row |= {"probability": chance_of[trial.number]}
        rows.append(row | {"config": trial.user_attrs["config"]})
    return rows


def bought(trials: Sequence[FrozenTrial]) -> Row:
    """The best of each recipe's complete trials within some budgets of seconds; the best recipe of all first.

    Returns:
        `budgets`, as text; `rows` with `recipe`, `n` (trials) and `cells`, one per budget: None where no trial was as
        fast, else `number`, `accuracy`, `low`, `high`, of how many trials it is the best (`n`), and `best`, whether
        no other recipe's is better.
    """
    recipes: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if is_complete(trial):
            config = trial.user_attrs["config"]
            recipes.setdefault(f"{config['training']}, {config['norm']}", []).append(trial)
    limits = budgets([trial.values[1] for own in recipes.values() for trial in own])
    rows = [
        {"recipe": name, "n": len(own), "cells": [best_within(own, t) for t in limits]} for name, own in recipes.items()
    ]
    rows.sort(key=lambda row: row["cells"][-1]["accuracy"], reverse=True)
    for column in zip(*(row["cells"] for row in rows), strict=True):
        there = [cell for cell in column if cell]
        for cell in there:
            cell["best"] = cell["accuracy"] == max(other["accuracy"] for other in there)
    return {"budgets": [duration(limit) for limit in limits], "rows": rows}


def best_within(trials: Sequence[FrozenTrial], seconds: float) -> Row | None:
    within = [trial for trial in trials if trial.values[1] <= seconds]
    if not within:
        return None
    best = max(within, key=lambda trial: (trial.values[0], -trial.values[1]))
    low, high = wilson(best.values[0], best.user_attrs["n_examples"])
    return {"number": best.number, "accuracy": best.values[0], "low": low, "high": high, "n": len(within)}


def budgets(seconds: Sequence[float]) -> list[float]:
    """Some round numbers of seconds, evenly spread over the logarithm of those given, which the last covers."""
    if not seconds:
        return []
    low, high = (max(f(seconds), 1e-3) for f in (min, max))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    rounds = [limit for power in powers for digit in ROUND if (limit := float(f"{digit}e{power}")) >= low]
    found = rounds[: 1 + next(i for i, limit in enumerate(rounds) if limit >= high)]
    if len(found) <= N_BUDGETS:
        return found
    return [found[round(i)] for i in np.linspace(0, len(found) - 1, N_BUDGETS + 1)[1:]]  # few are in the first


def duration(seconds: float) -> str:
    """E.g. `0.5 s`, `1500 s (25 min)`, `7000 s (1.9 h)`."""
    text = f"{np.format_float_positional(seconds, trim='-')} s"
    if seconds < 60:
        return text
    return f"{text} ({seconds / 60:.2g} min)" if seconds < 3600 else f"{text} ({seconds / 3600:.2g} h)"


def reasons(trials: Sequence[FrozenTrial]) -> list[tuple[int, str, str]]:
    """Why trials were stopped or failed, the most frequent reasons first: how many, which of the two, why."""
    words = {TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}
    counts = Counter(
        (words[trial.state], trial.user_attrs.get("reason", "no reason was stored").removeprefix("stopped early: "))
        for trial in trials
        if trial.state in words
    )
    return [(n, state, reason) for (state, reason), n in counts.most_common()]


def confirmation(folder: Path) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """confirmed.csv and gates.csv, where there are both; study/confirmation.py says what their columns are.

    Raises:
        InputError: If one of them is none that study.confirm writes.
    """
    paths = [folder / "confirmed.csv", folder / "gates.csv"]
    if not all(path.exists() for path in paths):
        return None, None
    return read_confirmed(paths[0]), read_gates(paths[1])


def records(frame: pd.DataFrame | None) -> list[Row]:
    """Rows of a table, None where a cell is empty."""
    return [] if frame is None else frame.astype(object).where(frame.notna(), None).to_dict("records")


def machine(folder: Path) -> Row:
    """Versions and hardware from study.json; nothing where it is not in the folder, or not readable."""
    try:
        content = json.loads((folder / "study.json").read_text())
        hardware = dict(content["hardware"])
        resources = hardware.pop("ray_resources", {})
        of_devices = {name: n for name, n in resources.items() if name in ("CPU", "GPU") or "accelerator_type" in name}
        return content["versions"] | hardware | {f"Ray: {name}": n for name, n in of_devices.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
