"""Pictures and a page from a study's storage: `python -m study.report NAME` writes them again."""

import html
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import optuna
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogFormatter
from optuna.trial import FrozenTrial

from study import cli, storage
from study.results import (
    describe,
    flatten,
    front_frame,
    front_hypervolume,
    front_hypervolumes,
    front_of,
    is_complete,
    wilson,
)
from trainables.errors import InputError, nearest
from trainables.files import write_whole

COLOURS = {"front": "#0b6e4f", "other": "#9aa5b1", "published": "#c8553d"}


def write(study: optuna.Study, folder: Path) -> None:
    """front.png, front.svg and report.html."""
    trials = study.get_trials(deepcopy=False)
    settings = study.user_attrs["settings"]
    figure = front_figure(trials, settings)
    for suffix in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=160)
        write_whole(folder / f"front.{suffix}", buffer.getvalue())
    write_whole(folder / "report.html", page(trials, settings).encode())


def front_figure(trials: list[FrozenTrial], settings: dict[str, object]) -> Figure:
    """Adversarial accuracy with its 95 % interval over training seconds (log), front and published ones marked."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    front = front_of(trials)
    members = {trial.number for trial in front}
    complete = [trial for trial in trials if is_complete(trial)]
    others = [trial for trial in complete if trial.number not in members]
    _scatter(axes, others, COLOURS["other"], "dominated", alpha=0.55)
    _scatter(axes, front, COLOURS["front"], "Pareto front")
    if front:
        accuracy, seconds = zip(*(trial.values for trial in front), strict=True)
        axes.step(seconds, accuracy, where="post", color=COLOURS["front"], linewidth=1.2, alpha=0.7)
    published = [trial for trial in complete if trial.user_attrs.get("label")]
    if published:
        axes.scatter(
            [trial.values[1] for trial in published],
            [trial.values[0] for trial in published],
            s=90,
            facecolors="none",
            edgecolors=COLOURS["published"],
            linewidths=1.4,
            label="published configuration",
            zorder=4,
        )
    for trial in published:
        axes.annotate(
            describe(trial), (trial.values[1], trial.values[0]), xytext=(8, -12), textcoords="offset points", fontsize=8
        )
    if complete:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        axes.margins(x=0.12)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    axes.set_xlabel("training seconds (log scale)")
    axes.set_ylabel(f"adversarial accuracy, PGD-{settings['attack_steps']}, eps {eps_text(settings['eps'])}")
    axes.set_title(subtitle(trials, settings), fontsize=10)
    axes.grid(alpha=0.25)
    return figure


def _scatter(axes: Axes, trials: list[FrozenTrial], colour: str, label: str, alpha: float = 1.0) -> None:
    if not trials:
        return
    accuracy = [trial.values[0] for trial in trials]
    low, high = zip(*(wilson(trial.values[0], trial.user_attrs["n_examples"]) for trial in trials), strict=True)
    below = [max(0.0, a - b) for a, b in zip(accuracy, low, strict=True)]
    above = [max(0.0, b - a) for a, b in zip(accuracy, high, strict=True)]
    seconds = [trial.values[1] for trial in trials]
    style = {"fmt": "o", "markersize": 5, "elinewidth": 0.8, "color": colour, "alpha": alpha}
    axes.errorbar(seconds, accuracy, yerr=[below, above], label=label, **style)


def eps_text(eps: float) -> str:
    """Radius in pixel units and in steps of 1/255."""
    return f"{eps:.4g} ({eps * 255:.3g}/255)"


def subtitle(trials: list[FrozenTrial], settings: dict[str, object]) -> str:
    n = sum(is_complete(trial) for trial in trials)
    return (
        f"{settings['name']}: {settings['dataset']}, {n} complete trials, hypervolume {front_hypervolume(trials):.4g}"
    )


def page(trials: list[FrozenTrial], settings: dict[str, object]) -> str:
    """One self-contained page that opens offline."""
    figures = [interactive_front(trials, settings), hypervolume_history(trials), learning_curves(trials)]
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=i == 0, config={"displayModeBar": False, "responsive": True})
        for i, figure in enumerate(figures)
    ]
    ended = {state: sum(trial.state.name == state for trial in trials) for state in ("COMPLETE", "PRUNED", "FAIL")}
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in settings.items()
    )
    return PAGE.format(
        title=html.escape(str(settings["name"])),
        subtitle=html.escape(
            f"{ended['COMPLETE']} complete, {ended['PRUNED']} stopped early, {ended['FAIL']} failed trials. "
            "Time is measured training seconds; intervals are 95 % Wilson intervals on validation images."
        ),
        front=parts[0],
        table=front_frame(trials).to_html(index=False, float_format=lambda value: f"{value:.4g}", border=0, na_rep=""),
        history=parts[1],
        curves=parts[2],
        settings=rows,
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: Pareto front</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1100px; padding: 1rem; color: #1f2933; }}
h1, h2 {{ line-height: 1.2; }} h2 {{ margin-top: 2.2rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.8rem; white-space: nowrap; }}
th, td {{ text-align: left; padding: 0.25rem 0.7rem; border-bottom: 1px solid #e4e7eb; }}
</style></head><body>
<h1>{title}</h1><p>{subtitle}</p>
<h2>Adversarial accuracy against training seconds</h2>{front}
<h2>Front members</h2><div class="scroll">{table}</div>
<h2>Hypervolume</h2>{history}
<h2>Learning curves of front members</h2>{curves}
<h2>Settings</h2><div class="scroll"><table>{settings}</table></div>
</body></html>
"""


def interactive_front(trials: list[FrozenTrial], settings: dict[str, object]) -> go.Figure:
    """The front with its parameters on hover; dominated trials faint, published ones ringed and named."""
    figure = go.Figure()
    members = {trial.number for trial in front_of(trials)}
    complete = [trial for trial in trials if is_complete(trial)]
    groups = [
        ("dominated", [t for t in complete if t.number not in members], COLOURS["other"], 0.5, "markers"),
        ("Pareto front", front_of(trials), COLOURS["front"], 1.0, "lines+markers"),
    ]
    for name, group, colour, opacity, mode in groups:
        intervals = [wilson(trial.values[0], trial.user_attrs["n_examples"]) for trial in group]
        figure.add_scatter(
            x=[trial.values[1] for trial in group],
            y=[trial.values[0] for trial in group],
            error_y={
                "array": [high - t.values[0] for t, (_, high) in zip(group, intervals, strict=True)],
                "arrayminus": [t.values[0] - low for t, (low, _) in zip(group, intervals, strict=True)],
                "thickness": 1,
            },
            mode=mode,
            line_shape="hv",
            name=name,
            opacity=opacity,
            marker={"color": colour, "size": 9},
            text=[hover(trial) for trial in group],
            hovertemplate="%{text}<extra></extra>",
        )
    published = [trial for trial in complete if trial.user_attrs.get("label")]
    figure.add_scatter(
        x=[trial.values[1] for trial in published],
        y=[trial.values[0] for trial in published],
        mode="markers+text",
        name="published configuration",
        text=[describe(trial) for trial in published],
        textposition="bottom right",
        hoverinfo="skip",
        marker={"size": 16, "color": COLOURS["published"], "symbol": "circle-open", "line": {"width": 2}},
    )
    figure.update_xaxes(type="log", title="training seconds (log scale)")
    figure.update_yaxes(title=f"adversarial accuracy, PGD-{settings['attack_steps']}, eps {eps_text(settings['eps'])}")
    return figure.update_layout(**LAYOUT)


LAYOUT = {
    "template": "plotly_white",
    "height": 460,
    "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
    "legend": {"orientation": "h", "y": 1.1},
}


def hover(trial: FrozenTrial) -> str:
    accuracy, seconds = trial.values
    head = f"#{trial.number} {describe(trial)}<br>adversarial {accuracy:.4f}<br>{seconds:.1f} s"
    return "<br>".join([head, *(f"{name}: {value}" for name, value in flatten(trial.params).items())])


def hypervolume_history(trials: list[FrozenTrial]) -> go.Figure:
    """Hypervolume after each complete trial, in the order in which they ended, one reference for all."""
    complete = sorted((t for t in trials if is_complete(t)), key=lambda t: t.datetime_complete)
    history = front_hypervolumes(complete)
    figure = go.Figure(go.Scatter(x=list(range(1, len(history) + 1)), y=history, mode="lines+markers"))
    figure.update_traces(marker_color=COLOURS["front"], line_shape="hv")
    figure.update_xaxes(title="complete trials")
    figure.update_yaxes(title="hypervolume (accuracy x seconds)")
    return figure.update_layout(**LAYOUT)


def learning_curves(trials: list[FrozenTrial]) -> go.Figure:
    """Validation accuracy of front members over their training seconds."""
    figure = go.Figure()
    for trial in front_of(trials):
        curve = trial.user_attrs["curve"]
        figure.add_scatter(
            x=[row["train_seconds"] for row in curve],
            y=[row["adversarial_accuracy"] for row in curve],
            mode="lines+markers",
            name=f"#{trial.number} {describe(trial)}",
        )
    figure.update_xaxes(title="training seconds")
    figure.update_yaxes(title="adversarial accuracy (last point: all examples)")
    return figure.update_layout(**LAYOUT)


@click.command(name="report", help="Write report.html, front.png and front.svg of the study NAME again.")
@click.argument("name")
@click.option("--results-dir", default="results", show_default=True, help="Folder of results/<name>/.")
@click.option("--storage", "url", metavar="URL", help="Optuna storage. [default: SQLite in the results]")
@cli.log_level
def command(name: str, results_dir: str, url: str | None) -> int:
    folder = Path(results_dir) / name
    database = folder / "study.db"
    if url is None and not database.exists():
        made = [path.parent.name for path in Path(results_dir).glob("*/study.db")]
        raise InputError(
            f"name: {nearest(name, made)}" if made else f"name: {name!r}; accepted: none yet in {results_dir}"
        )
    study = storage.existing(url or f"sqlite:///{database}", name)
    if study is None:
        raise InputError(f"name: {name!r} given; accepted: a study in that storage")
    folder.mkdir(parents=True, exist_ok=True)
    write(study, folder)
    click.echo(folder / "report.html")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
