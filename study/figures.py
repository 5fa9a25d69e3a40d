"""The report's interactive figures, as plotly figures; the page puts them into its own colours and sizes."""

import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from study.importances import Importances
from study.ladder import rungs
from study.results import describe, flatten, front_hypervolumes, front_of, is_complete, wilson

# Light colours; DARK is what the page shows in their place on a dark screen.
FRONT, OTHER, PUBLISHED, STOPPED, FAILED, CONFIRMED = "#0b6e4f", "#8895a3", "#c2410c", "#7c6a0a", "#b4232c", "#5b3fb0"
INK, GRID, PAGE = "#1f2933", "#e2e6ea", "#ffffff"
DARK = {
    FRONT: "#4cc9a0",
    OTHER: "#a3afbc",
    PUBLISHED: "#ff9a62",
    STOPPED: "#d9c04a",
    FAILED: "#ff7b81",
    CONFIRMED: "#b7a2ff",
    INK: "#e4e8ed",
    GRID: "#2d3743",
    PAGE: "#12171d",
}

N_WITH_BARS = 200  # with more dominated trials, their intervals hide the picture: hover tells them
SECONDS = {"measured": "training seconds", "calibrated": "calibrated training seconds"}
SECONDS_COLUMN = {"measured": "train_seconds", "calibrated": "calibrated_seconds"}

# What each training reads of the fields that say how to train against attacks; every configuration has them all.
READ_BY = {
    "natural": set(),
    "pgd": {"attack_norm", "eps", "pgd_steps", "step_size"},
    "fgsm": {"attack_norm", "eps", "step_size"},
    "free": {"attack_norm", "eps", "step_size", "free_replays"},
    "trades": {"attack_norm", "eps", "pgd_steps", "step_size", "trades_beta"},
    "static": {"attack_norm", "eps", "pgd_steps", "step_size"},
}
READ_BY_SOME = set.union(*READ_BY.values())
N_AXES, AXIS_WIDTH = 12, 88  # with more axes than fit on the page, so many pixels for each: it scrolls
N_TICKS = 10  # of more whole numbers, not each has its own
NONE = "–"  # the place on an axis of a trial to which it does not apply


def figure(height: int) -> go.Figure:
    """An empty figure in the page's style."""
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "automargin": True,
        "title": {"font": {"size": 13}},
    }
    return go.Figure(
        layout={
            "template": None,
            "height": height,
            "margin": {"l": 50, "r": 16, "t": 16, "b": 44},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
            "xaxis": axis,
            "yaxis": axis,
        }
    )


def colours(n: int) -> list[str]:
    """From the fastest front member (blue) to the most accurate (red); legible on white and on black."""
    return [f"hsl({220 - 210 * i / max(1, n - 1):.0f}, 65%, 47%)" for i in range(n)]


def last_point(trial: FrozenTrial, objective: str) -> tuple[float, float, int] | None:
    """Where a trial without objective values had come: seconds, adversarial accuracy and its number of examples."""
    for row in reversed(trial.user_attrs.get("curve", [])):
        seconds, accuracy = row.get(SECONDS_COLUMN[objective]), row.get("adversarial_accuracy")
        if seconds is not None and accuracy is not None and math.isfinite(accuracy) and 0 < seconds < math.inf:
            return seconds, accuracy, row["n_examples"]
    return None


def front(trials: Sequence[FrozenTrial], objective: str, confirmed: pd.DataFrame | None = None) -> go.Figure:
    """Adversarial accuracy over seconds (log): the front, dominated trials faint, and what did not end, apart."""
    members = front_of(trials)
    numbers = {trial.number for trial in members}
    complete = [trial for trial in trials if is_complete(trial)]
    dominated = [trial for trial in complete if trial.number not in numbers]
    result = figure(520)
    unfinished = [(TrialState.FAIL, "failed", "x-thin", FAILED), (TrialState.PRUNED, "stopped early", None, STOPPED)]
    for state, name, symbol, colour in unfinished:
        points = [(t, p) for t in trials if t.state is state and (p := last_point(t, objective)) is not None]
        if points:
            result.add_scatter(
                x=[seconds for _, (seconds, _, _) in points],
                y=[accuracy for _, (_, accuracy, _) in points],
                mode="markers",
                name=name,
                opacity=0.6,
                marker={"symbol": symbol or "triangle-down-open", "size": 7, "color": colour, "line": {"width": 1.4}}
                | ({"line": {"width": 1.6, "color": colour}} if symbol else {}),
                text=[hover(trial, accuracy, seconds, n) for trial, (seconds, accuracy, n) in points],
                hovertemplate="%{text}<extra></extra>",
            )
    few = len(dominated) <= N_WITH_BARS
    faint = {"bars": True, "opacity": 0.6, "size": 7} if few else {"bars": False, "opacity": 0.35, "size": 5}
    _add_complete(result, dominated, "dominated", OTHER, mode="markers", **faint)
    _add_complete(result, members, "Pareto front", FRONT, bars=True, opacity=1.0, mode="lines+markers", size=9)
    bars = [wilson(trial.values[0], trial.user_attrs["n_examples"]) for trial in complete]
    if confirmed is not None and len(confirmed):
        _add_confirmed(result, confirmed, objective)
        bars += confirmed[["adversarial_low", "adversarial_high"]].dropna().itertuples(index=False)
    _name_published(result, [trial for trial in complete if trial.user_attrs.get("label")], bars)
    result.update_xaxes(type="log", title_text=f"{SECONDS[objective]} (log scale)", dtick="D2", tickformat="~g")
    return result.update_yaxes(title_text="adversarial accuracy")


def _add_complete(
    result: go.Figure,
    trials: Sequence[FrozenTrial],
    name: str,
    colour: str,
    *,
    bars: bool,
    opacity: float,
    mode: str,
    size: int,
) -> None:
    if not trials:
        return
    accuracy = np.array([trial.values[0] for trial in trials])
    intervals = np.array([wilson(trial.values[0], trial.user_attrs["n_examples"]) for trial in trials])
    bar = {"array": intervals[:, 1] - accuracy, "arrayminus": accuracy - intervals[:, 0], "thickness": 1, "width": 0}
    result.add_scatter(
        x=[trial.values[1] for trial in trials],
        y=accuracy,
        error_y=bar if bars else None,
        mode=mode,
        line={"shape": "hv", "width": 1.5},
        name=name,
        opacity=opacity,
        marker={"color": colour, "size": size},
        text=[hover(trial, *trial.values, trial.user_attrs["n_examples"]) for trial in trials],
        hovertemplate="%{text}<extra></extra>",
    )


def _add_confirmed(result: go.Figure, confirmed: pd.DataFrame, objective: str) -> None:
    """Diamonds; their name says which seconds theirs are, where the axis has the search's other ones."""
    bars, own = {}, confirmed["objective"].iloc[0]
    for axis, quantity in [("error_x", "seconds"), ("error_y", "adversarial")]:
        mean, low, high = (confirmed[f"{quantity}_{part}"] for part in ("mean", "low", "high"))
        bars[axis] = {"array": high - mean, "arrayminus": mean - low, "thickness": 1, "width": 3}
    result.add_scatter(
        x=confirmed["seconds_mean"],
        y=confirmed["adversarial_mean"],
        **bars,
        mode="markers",
        name="confirmed: test, mean over seeds" + ("" if own == objective else f", {own} seconds"),
        marker={"symbol": "diamond", "size": 9, "color": CONFIRMED},
        text=[
            f"<b>#{row.number} {plain(row.name)}</b><br>test, {row.n_seeds} seeds<br>"
            f"adversarial {row.adversarial_mean:.3f}<br>{row.seconds_mean:.1f} s"
            for row in confirmed.itertuples(index=False)
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _name_published(result: go.Figure, trials: Sequence[FrozenTrial], bars: Sequence[tuple[float, float]]) -> None:
    """A ring and a name at each published configuration, the names above all bars that are drawn."""
    if not trials:
        return
    result.add_scatter(
        x=[trial.values[1] for trial in trials],
        y=[trial.values[0] for trial in trials],
        mode="markers",
        name="published configuration",
        hoverinfo="skip",
        marker={"size": 17, "color": PUBLISHED, "symbol": "circle-open", "line": {"width": 2}},
    )
    lows, highs = zip(*bars, strict=True)
    for trial, rung in zip(trials, rungs([trial.values[1] for trial in trials], min(lows), max(highs)), strict=True):
        x = math.log10(trial.values[1])
        result.add_annotation(
            x=x,
            y=trial.values[0],
            ax=x,
            ay=rung.height,
            axref="x",
            ayref="y",
            text=plain(describe(trial)),
            xanchor="left" if rung.to_the_right else "right",
            font={"color": PUBLISHED, "size": 12},
            bgcolor=PAGE,
            opacity=0.9,
            arrowcolor=PUBLISHED,
            arrowwidth=1,
            arrowhead=0,
            standoff=9,
        )


def plain(text: str) -> str:
    """For plotly to show as it is, which reads tags in its texts."""
    return escape(text, quote=False)


def hover(trial: FrozenTrial, accuracy: float, seconds: float, n: int) -> str:
    """What a trial is and reached, and its parameters."""
    low, high = wilson(accuracy, n)
    head = [
        f"<b>#{trial.number} {plain(describe(trial))}</b>",
        f"adversarial {accuracy:.3f} [{low:.3f}, {high:.3f}], n {n}",
        f"{seconds:.1f} s",
    ]
    if "clean_accuracy" in trial.user_attrs:
        head.append(f"clean {trial.user_attrs['clean_accuracy']:.3f}")
    if trial.state is not TrialState.COMPLETE:
        head.append(f"{trial.user_attrs.get('reason', '')}, after epoch {len(trial.user_attrs['curve'])}")
    return "<br>".join([*head, *(f"{name}: {_short(value)}" for name, value in flatten(trial.params).items())])


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def device_seconds(trial: FrozenTrial) -> float:
    """Seconds for which the trial held its device: from its start to its end, and no less than it trained."""
    held = 0.0
    if trial.datetime_start and trial.datetime_complete:
        held = (trial.datetime_complete - trial.datetime_start).total_seconds()
    trained = [row["train_seconds"] for row in trial.user_attrs.get("curve", [])]
    return max([held, *trained[-1:]])


def ended(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those that have ended, well or not, in the order of their ends."""
    return sorted((t for t in trials if t.state.is_finished()), key=lambda t: (t.datetime_complete, t.number))


def hypervolume(trials: Sequence[FrozenTrial]) -> dict[str, go.Figure]:
    """Hypervolume after each trial's end, over `trials` that ended and device `hours`, from one reference point."""
    order = ended(trials)
    history, heights, height = iter(front_hypervolumes(order)), [], 0.0
    for trial in order:
        height = next(history) if is_complete(trial) else height
        heights.append(height)
    counts = np.arange(1, len(order) + 1)
    hours = np.cumsum([device_seconds(trial) for trial in order]) / 3600
    results = {}
    for name, x, title in [("trials", counts, "trials that have ended"), ("hours", hours, "device-hours")]:
        results[name] = result = figure(300)
        result.add_scatter(
            x=x,
            y=heights,
            mode="lines",
            line={"shape": "hv", "color": FRONT, "width": 2},
            hovertemplate="%{x:.3g} " + title + "<br>%{y:.4g}<extra></extra>",
        )
        result.update_xaxes(title_text=title, rangemode="tozero")
        result.update_yaxes(title_text="hypervolume", rangemode="tozero")
    return results


def importances(found: Importances) -> go.Figure:
    """A pair of bars per parameter, the most important on top; pale where chance alone reaches as far."""
    names = sorted(found.accuracy, key=lambda name: max(found.accuracy[name], found.seconds[name]))
    result = figure(90 + 46 * len(names))
    groups = [
        ("training seconds", found.seconds, found.seconds_by_chance, OTHER),
        ("adversarial accuracy", found.accuracy, found.accuracy_by_chance, FRONT),
    ]
    for title, share, chance, colour in groups:
        result.add_bar(
            y=names,
            x=[share[name] for name in names],
            orientation="h",
            name=title,
            marker={"color": colour, "opacity": [0.3 if share[name] <= chance[name] else 1.0 for name in names]},
            customdata=[chance[name] for name in names],
            hovertemplate="%{y}: %{x:.2f}; shuffled results reach %{customdata:.2f}<extra>" + title + "</extra>",
        )
    result.update_layout(bargap=0.25, barmode="group", legend_traceorder="reversed")
    return result.update_xaxes(title_text="share of importance", rangemode="tozero")


def parallel_coordinates(trials: Sequence[FrozenTrial]) -> go.Figure | None:
    """Complete trials across what varied among them and the two objectives; None where nothing varied."""
    complete = [trial for trial in trials if is_complete(trial)]
    rows = [_coordinates(trial) for trial in complete]
    table = pd.DataFrame(rows)
    varied = [column for column in table if len({str(row[column]) for row in rows if column in row}) > 1]
    if not varied:
        return None
    dimensions = [_dimension(column, table[column]) for column in varied]
    accuracy, seconds = zip(*(trial.values for trial in complete), strict=True)
    dimensions.append(_dimension("seconds", pd.Series(seconds), log=True))
    dimensions.append(_dimension("accuracy", pd.Series(accuracy)))
    result = figure(440)
    result.add_parcoords(
        dimensions=dimensions,
        line={
            "color": accuracy,
            "colorscale": [[0, "hsl(220, 65%, 55%)"], [0.5, "hsl(160, 60%, 42%)"], [1, "hsl(30, 90%, 50%)"]],
            "showscale": False,
        },
        unselected={"line": {"color": OTHER, "opacity": 0.06}},
        labelfont={"color": INK, "size": 12},
        tickfont={"color": INK, "size": 11},
        rangefont={"color": INK, "size": 1},
        labelangle=-20,
    )
    if len(dimensions) > N_AXES:
        result.update_layout(width=AXIS_WIDTH * len(dimensions))
    return result.update_layout(margin={"l": 84, "r": 44, "t": 76, "b": 20})


def _coordinates(trial: FrozenTrial) -> dict[str, object]:
    """What a trial's training read of its configuration, without what others than it would read.

    Batch sizes are first, last and kind of growth, which every trial has.
    """
    config = dict(trial.user_attrs["config"])
    schedule = config.pop("batch_size_schedule")
    config.pop("seed", None)
    unread = READ_BY_SOME - READ_BY[config["training"]]
    unread |= {"eval_statistics"} if config["norm"] in ("groupnorm", "fixup") else set()
    unread |= {"lr_follows_batch"} if schedule["kind"] == "constant" else set()
    unread |= {"nesterov"} if config.get("momentum") == 0 else set()
    sizes = schedule.get("sizes") or [schedule.get("first", schedule.get("size")), schedule.get("last")]
    batch = {"batch sizes": schedule["kind"], "first batch": sizes[0], "last batch": sizes[-1] or sizes[0]}
    return batch | flatten({field: value for field, value in config.items() if field not in unread})


def _dimension(label: str, values: pd.Series, log: bool = False) -> dict[str, object]:
    """One axis: numbers as they are, or by their logarithm where they span a factor of 10; all else by name.

    Empty values are apart, below all others.
    """
    known = values.dropna().infer_objects()
    empty = [NONE] if len(known) < len(values) else []
    if not pd.api.types.is_numeric_dtype(known) or pd.api.types.is_bool_dtype(known):
        names = empty + sorted(known.astype(str).unique())
        places = values.astype(object).where(values.notna(), NONE).astype(str).map(names.index)
        return {"label": label, "values": places, "tickvals": list(range(len(names))), "ticktext": names}
    low, high = known.min(), known.max()
    if log or (low > 0 and high >= 10 * low):
        ticks = np.unique(np.geomspace(low, high, 5).round(12))
        places, at = np.log10(values.astype(float)), np.log10(ticks)
    elif empty:
        few = known.nunique() <= N_TICKS and (known % 1 == 0).all()
        ticks = at = np.unique(known) if few else np.linspace(low, high, 5)
        places = values.astype(float)
    else:
        return {"label": label, "values": values}
    apart = places.min() - 0.15 * (np.ptp(at) or 1.0)
    return {
        "label": label,
        "values": places.fillna(apart),
        "tickvals": [apart] * len(empty) + list(at),
        "ticktext": empty + [f"{tick:.0f}" if tick >= 1000 else f"{tick:.3g}" for tick in ticks],
    }


CURVES = {
    "adversarial_accuracy": "adversarial accuracy",
    "clean_accuracy": "clean accuracy",
    "batch_size": "batch size",
    "lr": "learning rate",
}


def curves(trials: Sequence[FrozenTrial], column: str, objective: str) -> go.Figure:
    """One column of the front members' curves: accuracies over seconds, schedules over epochs."""
    members = front_of(trials)
    result = figure(280)
    schedule = column in ("batch_size", "lr")
    x = "epoch" if schedule else SECONDS_COLUMN[objective]
    for trial, colour in zip(members, colours(len(members)), strict=True):
        rows = trial.user_attrs.get("curve", [])
        result.add_scatter(
            x=[row[x] for row in rows],
            y=[row[column] for row in rows],
            mode="lines+markers",
            line={"color": colour, "width": 1.6, "shape": "hv" if column == "batch_size" else "linear"},
            marker={"size": 4},
            name=f"#{trial.number} {plain(describe(trial))}",
            showlegend=False,
            hovertemplate="%{y:.4g}, " + x.replace("_", " ") + " %{x:.4g}<extra>%{fullData.name}</extra>",
        )
    result.update_xaxes(title_text="epoch" if schedule else f"{SECONDS[objective]} (log scale)")
    if not schedule:
        result.update_xaxes(type="log", dtick="D2", tickformat="~g")
    if column == "batch_size":
        sizes = sorted({row[column] for trial in members for row in trial.user_attrs.get("curve", [])})
        result.update_yaxes(type="log", tickvals=sizes, ticktext=[str(size) for size in sizes])
    if column == "lr":
        lrs = [row[column] for trial in members for row in trial.user_attrs.get("curve", []) if row[column] > 0]
        wide = bool(lrs) and max(lrs) > 30 * min(lrs)
        result.update_yaxes(type="log", tickformat=".0e", dtick=1 if wide else "D2")
    return result.update_yaxes(title_text=CURVES[column])
