import base64
import io
import json
import math
import re
import sqlite3
import time
from pathlib import Path
from typing import get_args

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

import trainables.examples
from study import confirm, examples, figures, folders, importances, page, picture, recommend, report, storage
from study.results import read_confirmed, wilson
from tests.study import browser, synthetic
from tests.study.trials import CONFIG, add, weights
from trainables import data, devices
from trainables.adversarial import RECIPES, step
from trainables.config import EvalConfig, Training, TrialConfig
from trainables.examples import N_ATTACKED
from trainables.resnet import resnet
from trainables.sgd import SGD
from trainables.trial import Trial, evaluation_attack, first_examples, load_model

SETTINGS = {"name": "mine", "dataset": "digits", "eps": 0.1, "attack_steps": 10, "trials": 4}
CONFIRMED = """\
number,name,role,n_seeds,n_failed,n_examples,n_attack_examples,objective,clean_mean,clean_std,clean_low,clean_high,\
adversarial_mean,adversarial_std,adversarial_low,adversarial_high,autoattack_mean,autoattack_std,autoattack_low,\
autoattack_high,autoattack_pgd,seconds_mean,seconds_std,seconds_low,seconds_high,front_probability,gates_failed,searched_adversarial,\
searched_seconds
1,fixup 8,front,5,0,297,100,measured,.95,.01,.94,.96,.31,.02,.29,.33,.28,.02,.26,.30,.31,5.1,0.1,5.0,5.2,0.83,,0.3,5.0
0,Fixup <8>,"front, published",1,1,297,100,measured,0.96,,,,0.48,,,,0.35,,,,0.48,10.2,,,,0.97,autoattack,0.5,10.0
2,fixup 8,earlier,0,0,0,0,measured,,,,,,,,,,,,,,,,,,,,0.4,12.0
"""
GATES = """\
number,name,gate,passed,figure,threshold,unit,text
1,fixup 8,autoattack,True,0.03,0.05,points,AutoAttack is 3 points below PGD
0,Fixup <8>,autoattack,False,0.13,0.05,points,AutoAttack is 13 points below PGD: PGD flatters it
"""


def curve(*accuracies, batch_size=8):
    return [
        {"epoch": i, "train_seconds": 2.0 * i, "clean_accuracy": 0.9, "adversarial_accuracy": accuracy}
        | {"n_examples": 50, "train_loss": 1.0, "batch_size": batch_size, "lr": 0.1}
        for i, accuracy in enumerate(accuracies, start=1)
    ]


def add_unfinished(study, state, reason, rows):
    attrs = {"config": CONFIG, "reason": reason, "curve": rows}
    study.add_trial(create_trial(state=state, user_attrs=attrs))


@pytest.fixture
def results(tmp_path):
    """Results folder of one study: three complete trials, one stopped early, two failed."""
    (tmp_path / "mine").mkdir()
    study = storage.open_study(storage.from_url(f"sqlite:///{tmp_path / 'mine' / 'study.db'}"), "mine")
    study.set_user_attr("settings", SETTINGS)
    add(study, 0.5, 10.0, label="Fixup <8>")
    add(study, 0.3, 5.0)
    add(study, 0.4, 12.0)
    add_unfinished(study, TrialState.PRUNED, "stopped early: no better than the front", curve(0.1, 0.2))
    add_unfinished(study, TrialState.FAIL, "diverged: loss nan", curve(0.1, math.nan))
    add_unfinished(study, TrialState.FAIL, "out of memory", [])
    return tmp_path


def html(results):
    return (results / "mine" / "report.html").read_text()


def test_the_report_is_one_page_that_needs_no_network(results, capsys):
    assert report.main(["mine", "--results-dir", str(results)]) == 0
    assert capsys.readouterr().out.split() == [
        str(results / "mine" / name) for name in ("report.html", "front.png", "front.svg")
    ]
    without_plotly = re.sub(r"<script>.*?</script>", "", html(results), flags=re.DOTALL)
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:|//)", without_plotly)
    assert "Fixup &lt;8&gt;" in without_plotly and "eps 0.1 (25.5/255)" in without_plotly


def test_pictures_are_written_for_the_screen_and_for_paper(results):
    report.main(["mine", "--results-dir", str(results)])
    assert (results / "mine" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (results / "mine" / "front.svg").read_text()


def test_a_command_on_the_page_leads_to_this_study(results, monkeypatch):
    report.main(["mine", "--results-dir", str(results)])
    assert f"<code>python -m study.confirm mine --results-dir {results}</code>" in html(results)
    (results / "results").mkdir()
    (results / "mine").rename(results / "results" / "mine")
    monkeypatch.chdir(results)
    report.main(["mine"])
    assert "<code>python -m study.confirm mine</code>" in html(results / "results")
    (results / "results" / "mine" / "study.db").rename(results / "elsewhere.db")
    report.main(["mine", "--storage", f"sqlite:///{results / 'elsewhere.db'}"])
    assert "<code>python -m study.confirm mine --storage URL</code>" in html(results / "results")


@pytest.mark.filterwarnings("error", "ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize(
    ("fastest", "slowest"),
    [(0.05, 1), (0.3, 7), (1, 20), (50, 5000), (5, 5), (3.1, 3.2), (0.001, 1e5), (2, 2500), (7.4, 7.40001), (4e4, 9e4)],
)
def test_seconds_below_the_picture_are_plain_numbers_apart_from_each_other(fastest, slowest):
    study = optuna.create_study(directions=storage.DIRECTIONS)
    add(study, 0.3, fastest)
    add(study, 0.5, slowest)
    drawn = picture.front(study.trials, "mine", "measured", "PGD-10")
    picture.encode(drawn, "png")
    labels = [label for label in drawn.axes[0].get_xticklabels(which="both") if label.get_text()]
    low, high = drawn.axes[0].get_xlim()
    places = [float(label.get_text()) for label in labels]
    assert len(places) >= 2 and places == sorted(places) and low <= places[0] and places[-1] <= high
    assert all(re.fullmatch(r"[0-9]+(\.[0-9]+)?", label.get_text()) for label in labels)
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 + 5 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))


def test_trials_that_did_not_end_well_stand_apart_where_their_last_evaluated_epoch_was(results):
    trials = storage.named("mine", str(results), None).get_trials()
    traces = {trace.name: trace for trace in figures.front(trials, "measured").data}
    assert list(traces) == ["failed", "stopped early", "dominated", "Pareto front", "published configuration"]
    assert (list(traces["stopped early"].x), list(traces["stopped early"].y)) == ([4.0], [0.2])
    assert (list(traces["failed"].x), list(traces["failed"].y)) == ([2.0], [0.1])  # its last finite row
    assert list(traces["Pareto front"].x) == [5.0, 10.0] and list(traces["dominated"].x) == [12.0]
    assert traces["failed"].marker.symbol != traces["stopped early"].marker.symbol
    assert "1 of them ended before one" in page.page(trials, SETTINGS, "measured", results)


def test_intervals_are_the_wilson_intervals_of_each_trials_own_examples(results):
    trials = storage.named("mine", str(results), None).get_trials()
    trace = next(trace for trace in figures.front(trials, "measured").data if trace.name == "Pareto front")
    low, high = 0.4038, 0.5962  # 50 of 100: (0.5 ± 1.96 sqrt(0.0025 + 0.000096...)) / 1.0384
    assert trace.y[1] - trace.error_y.arrayminus[1] == pytest.approx(low, abs=1e-4)
    assert trace.y[1] + trace.error_y.array[1] == pytest.approx(high, abs=1e-4)


def test_hovering_shows_the_parameters():
    study = optuna.create_study(directions=storage.DIRECTIONS)
    distribution = optuna.distributions.FloatDistribution(0, 1)
    attrs = {"config": CONFIG, "clean_accuracy": 0.9, "n_examples": 10, "label": "x"}
    study.add_trial(
        create_trial(values=[0.5, 1.0], params={"lr": 0.25}, distributions={"lr": distribution}, user_attrs=attrs)
    )
    assert "lr: 0.25" in figures.front(study.trials, "measured").data[0].text[0]


def test_device_hours_count_stopped_and_failed_trials_too(results):
    trials = storage.named("mine", str(results), None).get_trials()
    hours = figures.hypervolume(trials)["hours"].data[0]
    # these trials were added as they ended: no time passed but what their curves say they trained
    assert hours.x[-1] * 3600 == pytest.approx(4.0 + 4.0, abs=0.1)
    assert list(hours.y) == sorted(hours.y) and len(hours.y) == 6
    assert hours.y[-1] == pytest.approx(0.5 * (12 - 10) + 0.3 * (10 - 5))


def test_a_study_without_a_complete_trial_gets_a_page_when_it_ends(tmp_path):
    study = optuna.create_study(directions=storage.DIRECTIONS)
    study.set_user_attr("settings", SETTINGS)
    page.write(study, tmp_path)
    assert "There is no front" in (tmp_path / "report.html").read_text() and (tmp_path / "front.png").exists()


def test_what_another_trial_should_add_is_shown_where_the_sampler_knows(results):
    trials = storage.named("mine", str(results), None).get_trials()
    assert "another trial promises" not in page.page(trials, SETTINGS, "measured", results)
    trials[-1].set_user_attr("expected_gain", 0.0312)
    trials[-1].set_user_attr("expected_gain_per_hour", 12.344)
    shown = page.page(trials, SETTINGS, "measured", results)
    assert (
        "another trial promises</dt><dd>3.12 %<small>more, by the sampler's measure, at 1,230 % per device-hour"
        in shown
    )


def test_an_unfinished_study_has_a_report_that_says_so(results, capsys):
    study = storage.named("mine", str(results), None)
    study.set_user_attr("settings", SETTINGS | {"trials": 9})
    assert report.main(["mine", "--results-dir", str(results)]) == 0
    assert "unfinished: 6 of 9 trials have ended" in capsys.readouterr().out
    assert "6 of 9 trials have ended" in html(results)


def test_confirmed_members_are_shown_with_each_gate_and_the_figure_behind_it(results):
    report.main(["mine", "--results-dir", str(results)])
    assert "Nothing is confirmed yet" in html(results)
    (results / "mine" / "confirmed.csv").write_text(CONFIRMED)
    (results / "mine" / "gates.csv").write_text(GATES)
    report.main(["mine", "--results-dir", str(results)])
    text = re.sub(r"<[^>]+>|\s+", " ", re.sub(r"<script.*?</script>", "", html(results), flags=re.DOTALL))
    text = " ".join(text.split())
    assert "Nothing is confirmed yet" not in text
    assert "#1 fixup 8 front 5 0.83 5.1 [5.0, 5.2] 0.950 [0.940, 0.960] 0.310 [0.290, 0.330]" in text
    assert text.count("✓ all passed") == 1 and "✗ autoattack" in text
    assert "#2 fixup 8 earlier 0 – – – – – not judged yet" in text
    assert "✗ failed 0.13 0.05 points AutoAttack is 13 points below PGD: PGD flatters it" in text
    assert '"confirmed: test, mean over seeds"' in html(results)


def with_confirmation(results, table=CONFIRMED, gates=GATES):
    (results / "mine" / "confirmed.csv").write_text(table)
    (results / "mine" / "gates.csv").write_text(gates)


@pytest.mark.parametrize("label", ["None", "NA", "null", "nan", "0010", "1e3"])
def test_a_label_that_looks_like_none_or_like_a_number_stays_as_it_is(label, results, capsys):
    with_confirmation(results, CONFIRMED.replace("Fixup <8>", label), GATES.replace("Fixup <8>", label))
    assert report.main(["mine", "--results-dir", str(results)]) == 0
    assert html(results).count(f"<td>#0 {label}</td>") == 2
    assert f"#0 {label}<" in html(results)
    trials = storage.named("mine", str(results), None).get_trials()
    shown = figures.front(trials, "measured", page.confirmation(results / "mine")[0])
    assert any(f"#0 {label}<" in str(trace.text) for trace in shown.data if "confirmed" in trace.name)


def test_names_stand_above_the_bars_of_what_was_confirmed(results):
    with_confirmation(results)
    trials, (confirmed, _) = storage.named("mine", str(results), None).get_trials(), page.confirmation(results / "mine")
    confirmed = confirmed.assign(adversarial_low=0.0, adversarial_high=1.0)  # as of two seeds
    (name,) = figures.front(trials, "measured", confirmed).layout.annotations
    assert name.ay > 1.05


def test_confirmed_seconds_are_told_from_the_searchs(results):
    with_confirmation(results)
    trials, (confirmed, _) = storage.named("mine", str(results), None).get_trials(), page.confirmation(results / "mine")
    names = {own: figures.front(trials, own, confirmed).data[-2].name for own in ("measured", "calibrated")}
    assert names["measured"] == "confirmed: test, mean over seeds"
    assert names["calibrated"] == "confirmed: test, mean over seeds, measured seconds"
    assert "Seconds are measured.</p>" in page.page(trials, SETTINGS, "calibrated", results / "mine")


@pytest.mark.parametrize(
    ("table", "gates", "message"),
    [
        (CONFIRMED.replace("seconds_mean", "minutes"), GATES, "confirmed.csv: no column 'seconds_mean'"),
        (CONFIRMED.replace(".31", "a third"), GATES, "confirmed.csv: could not convert"),
        (CONFIRMED.replace("measured", "guessed"), GATES, "confirmed.csv: objective 'guessed'"),
        ("", GATES, "confirmed.csv: No columns"),
        (CONFIRMED, GATES.replace("threshold", "most"), "gates.csv: no column 'threshold'"),
    ],
)
def test_tables_that_are_not_as_written_get_one_line(table, gates, message, results, capsys):
    with_confirmation(results, table, gates)
    assert report.main(["mine", "--results-dir", str(results)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and "; accepted: what study.confirm" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([], []),
        ([4.0], [5]),
        ([6.0, 19.0], [7, 10, 15, 20]),
        ([1.0, 1000.0], [5, 30, 200, 1000]),
        ([0.0, 0.06], [0.003, 0.01, 0.02, 0.07]),
        ([0.15, 0.3], [0.15, 0.2, 0.3]),
    ],
)
def test_budgets_are_round_and_the_last_covers_every_trial(seconds, expected):
    assert page.budgets(seconds) == expected


@given(st.lists(st.floats(1e-4, 1e7), min_size=1, max_size=9))
def test_budgets_rise_and_none_is_too_short_for_all(seconds):
    found = page.budgets(seconds)
    assert found == sorted(set(found)) and len(found) <= page.N_BUDGETS
    assert found[0] >= min(seconds) and max(seconds) <= found[-1] <= max(2 * max(seconds), 1e-3)


def test_the_best_of_each_recipe_within_a_budget_is_told():
    study = optuna.create_study(directions=storage.DIRECTIONS)
    pgd = CONFIG | {"training": "pgd", "norm": "batchnorm"}
    for accuracy, seconds, config in [(0.1, 6, CONFIG), (0.3, 8, CONFIG), (0.2, 19, CONFIG), (0.5, 14, pgd)]:
        add(study, accuracy, seconds, config=config)
    add(study, state=TrialState.FAIL)
    found = page.bought(study.trials)
    assert found["budgets"] == ["7 s", "10 s", "15 s", "20 s"]
    assert [(row["recipe"], row["n"]) for row in found["rows"]] == [("pgd, batchnorm", 1), ("natural, fixup", 3)]
    told = [[cell and (cell["number"], cell["n"], cell["best"]) for cell in row["cells"]] for row in found["rows"]]
    assert told == [
        [None, None, (3, 1, True), (3, 1, True)],
        [(0, 1, True), (1, 2, True), (1, 2, False), (1, 3, False)],
    ]
    low, high = wilson(0.5, 100)
    assert found["rows"][0]["cells"][2] | {"low": low, "high": high} == found["rows"][0]["cells"][2]
    text = re.sub(r"<[^>]+>|\s+", " ", page.page(study.trials, SETTINGS, "measured", Path("nowhere")))
    assert "pgd, batchnorm 1 – – 0.500 [0.404, 0.596] #3 alone" in " ".join(text.split())
    assert "0.300 [0.219, 0.396] #1, best of 3" in " ".join(text.split())


def test_budgets_are_told_in_minutes_and_hours_too():
    assert [page.duration(s) for s in (0.05, 7, 1500, 7000)] == ["0.05 s", "7 s", "1500 s (25 min)", "7000 s (1.9 h)"]


class Watched:
    """A configuration that remembers which of its fields were read."""

    def __init__(self, config):
        self.config, self.read = config, set()

    def __getattr__(self, field):
        self.read.add(field)
        return getattr(self.config, field)


@pytest.mark.parametrize("training", sorted(RECIPES))
def test_the_fields_that_a_training_reads_are_those_that_its_step_reads(training):
    config = Watched(TrialConfig(training=training))
    model = resnet(8, 10, 1, "batchnorm")
    optimizer = SGD(model, momentum=0.0, nesterov=False, weight_decay=0.0)
    optimizer.set_lr(0.1)
    step(config, torch.Generator())(model, optimizer, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    before = {"attack_norm", "eps", "pgd_steps", "step_size"} if training == "static" else set()  # what crafting reads
    assert config.read & figures.READ_BY_SOME | before == figures.READ_BY[training]
    assert set(figures.READ_BY) == set(get_args(Training))


def parallel(*configs):
    study = optuna.create_study(directions=storage.DIRECTIONS)
    for i, config in enumerate(configs):
        add(study, 0.1 + 0.1 * i, 1.0 + i, config=TrialConfig(**config).model_dump(mode="json"))
    return figures.parallel_coordinates(study.trials)


def axes(*configs):
    """Label to (positions, ticks by their position) of the parallel coordinates of such trials."""
    return {
        axis.label: (list(axis.values), dict(zip(axis.tickvals or (), axis.ticktext or (), strict=True)))
        for axis in parallel(*configs).data[0].dimensions
    }


def test_parallel_coordinates_show_a_parameter_only_where_the_training_reads_it():
    natural, pgd = {"training": "natural"}, {"training": "pgd", "step_size": 0.1}
    found = axes(natural, pgd, pgd | {"pgd_steps": 3}, {"training": "trades", "pgd_steps": 3})
    values, ticks = found["pgd_steps"]
    assert [ticks[value] for value in values] == ["–", "7", "3", "3"] and values[0] == min(values)
    assert "trades_beta" not in found and "eps" not in found  # one value where they are read
    values, ticks = found["step_size"]
    assert [ticks[value] for value in values] == ["–", "0.1", "0.1", "–"]  # TRADES takes its own
    values, ticks = axes(natural, pgd | {"eps": 0.01}, pgd | {"eps": 0.5})["eps"]  # by the logarithm
    assert [ticks[value] for value in values] == ["–", "0.01", "0.5"] and values[0] == min(values)


def test_parallel_coordinates_leave_out_what_a_choice_makes_void():
    growing = {"batch_size_schedule": {"kind": "geometric", "first": 8, "last": 16}}
    constant = {"batch_size_schedule": {"kind": "constant", "size": 8}}
    still, moving = {"momentum": 0}, {"nesterov": True}
    by_batch, fixed = {"eval_statistics": "batch"}, {"lr_follows_batch": False}
    found = axes(
        constant | still | {"norm": "fixup"}, growing | moving | by_batch, growing | fixed, {"norm": "groupnorm"}
    )
    for label, shown in {
        "lr_follows_batch": ["–", "True", "False", "–"],
        "nesterov": ["–", "True", "False", "False"],
        "eval_statistics": ["–", "batch", "population", "–"],
    }.items():
        values, ticks = found[label]
        assert [ticks[value] for value in values] == shown


def test_many_parallel_axes_get_room_for_their_names():
    changed = {"norm": "groupnorm", "depth": 20, "epochs": 5, "momentum": 0.5, "weight_decay": 0.1, "nesterov": True}
    changed |= {"lr_batch_ratio": 0.1, "lr_schedule": "cosine", "precision": "fp32", "eps": 0.1, "pgd_steps": 3}
    made = parallel({"training": "pgd"}, {"training": "pgd"} | changed)
    assert made.layout.width == figures.AXIS_WIDTH * len(made.data[0].dimensions)
    assert parallel({}, {"epochs": 5}).layout.width is None  # as wide as the page


class TestImportances:
    @staticmethod
    def trials(n):
        """Accuracy follows `useful`, seconds follow `slow`, nothing follows `idle`."""
        study = optuna.create_study(directions=storage.DIRECTIONS, sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(n):
            trial = study.ask()
            x = {name: trial.suggest_float(name, 0, 1) for name in ("useful", "slow", "idle")}
            study.tell(trial, [x["useful"], 1 + x["slow"]])
        return study.trials

    def test_each_objective_has_its_own_and_what_is_idle_does_not_stand_out_from_chance(self):
        found = importances.evaluate(self.trials(100))
        assert max(found.accuracy, key=found.accuracy.get) == "useful"
        assert max(found.seconds, key=found.seconds.get) == "slow"
        assert sum(found.accuracy.values()) == pytest.approx(1) == sum(found.seconds.values())
        assert found.accuracy["useful"] > found.accuracy_by_chance["useful"]
        assert found.accuracy["idle"] <= found.accuracy_by_chance["idle"]

    def test_too_few_trials_are_said_to_be_too_few(self, results):
        assert importances.evaluate(self.trials(11)) is None
        report.main(["mine", "--results-dir", str(results)])
        assert "Too few trials: importances need at least 12 complete ones" in html(results)


class TestExamples:
    def test_where_there_are_no_weights_the_page_says_so(self, results):
        report.main(["mine", "--results-dir", str(results)])
        assert "None shown: the weights of the front" in html(results)

    @pytest.mark.parametrize("found", [b"half a file", weights(0)[:-4], weights(0, CONFIG | {"epochs": 9})])
    def test_weights_that_are_damaged_or_anothers_are_as_good_as_none(self, results, found):
        (results / "mine" / "models").mkdir()
        (results / "mine" / "models" / "0000.safetensors").write_bytes(found)
        assert report.main(["mine", "--results-dir", str(results)]) == 0
        assert "None shown: the weights of the front" in html(results)

    def test_where_there_are_no_images_nothing_is_downloaded(self, results):
        (results / "mine" / "models").mkdir()
        (results / "mine" / "models" / "0000.safetensors").write_bytes(weights(0))
        trials = storage.named("mine", str(results), None).get_trials()
        settings = SETTINGS | {"dataset": "cifar10", "data_dir": str(results / "nowhere")}
        with pytest.raises(examples.Unavailable, match="the images of cifar10 are not"):
            examples.make(trials, settings, results / "mine")
        assert not (results / "nowhere").exists()

    def test_they_stay_in_the_ball_around_validation_images_that_the_model_gets_right(self, tmp_path, monkeypatch):
        dataset = data.load("digits")
        config = TrialConfig(depth=8, norm="batchnorm", seed=0)
        (tmp_path / "models").mkdir()
        path = tmp_path / "models" / "0000.safetensors"
        Trial(config, dataset, EvalConfig(), torch.device("cpu")).save_weights(path)
        study = optuna.create_study(directions=storage.DIRECTIONS)
        attrs = {"config": config.model_dump(mode="json"), "clean_accuracy": 0.1, "n_examples": 32}
        study.add_trial(create_trial(values=[0.1, 1.0], user_attrs=attrs))

        threads = []

        def watched(*given):
            threads.append(torch.get_num_threads())
            return evaluation_attack(*given)

        monkeypatch.setattr(trainables.examples, "evaluation_attack", watched)
        with devices.computing_on(2):
            made = examples.make(study.trials, SETTINGS, tmp_path)
        assert threads == [1]  # trials may have the other cores
        far = examples.make(study.trials, SETTINGS | {"attack_norm": "l2", "eps": 0.5}, tmp_path)
        for example in far.shown:
            change = (decode(example.adversarial).astype(float) - decode(example.original)) / 255
            assert np.linalg.norm(change) <= 0.52 and np.abs(change).max() > 0.1  # a pixel is rounded to 1/255
            assert {0, 255} & set(decode(example.difference).flat)
        images, labels = first_examples(dataset.validation, N_ATTACKED)
        right = (load_model(path)(images).argmax(1) == labels).nonzero()[:, 0]
        assert 0 < len(made.shown) == min(len(right), examples.N_SHOWN)
        for example, index in zip(made.shown, right, strict=False):
            original, adversarial = decode(example.original), decode(example.adversarial)
            np.testing.assert_array_equal(original, dataset.validation.images[index, 0])
            assert 0 < np.abs(original.astype(int) - adversarial).max() <= math.ceil(0.1 * 255)
            assert {0, 255} & set(decode(example.difference).flat)
            assert example.label == str(labels[index].item())


def decode(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_two_thousand_trials_take_less_than_twenty_seconds_of_processor_time(tmp_path, capsys):
    (tmp_path / "synthetic").mkdir()
    synthetic.write(f"sqlite:///{tmp_path / 'synthetic' / 'study.db'}", 2000)
    before = time.process_time()
    assert report.main(["synthetic", "--results-dir", str(tmp_path)]) == 0
    assert time.process_time() - before < 20
    assert (tmp_path / "synthetic" / "report.html").stat().st_size < 10_000_000


@pytest.fixture(scope="module")
def in_browser(tmp_path_factory):
    """The report of a made-up study with trials of every kind, and how many of them can be placed."""
    folder = tmp_path_factory.mktemp("in_browser")
    (folder / "synthetic").mkdir()
    synthetic.write(f"sqlite:///{folder / 'synthetic' / 'study.db'}", 300)
    assert report.main(["synthetic", "--results-dir", str(folder)]) == 0
    trials = storage.named("synthetic", str(folder), None).get_trials()
    placed = [trial for trial in trials if figures.last_point(trial, "measured")]
    return (folder / "synthetic" / "report.html").as_uri(), len(placed)


@pytest.mark.slow
@pytest.mark.parametrize("width", [browser.DESKTOP, browser.PHONE])
def test_a_browser_shows_every_figure_without_an_error_in_light_and_dark_colours(in_browser, width):
    url, n_placed = in_browser
    with browser.chromium(width) as opened:
        opened.get(url)
        names = [place.get_attribute("id") for place in opened.find_elements("css selector", ".chart")]
        assert {"front", "hypervolume-trials", "hypervolume-hours", "importances", "parallel"} <= set(names)
        assert {"curve-adversarial_accuracy", "curve-clean_accuracy", "curve-batch_size", "curve-lr"} <= set(names)
        colours = []
        for dark in (False, True):
            browser.show_colours(opened, dark)
            for name in names:
                assert opened.find_elements("css selector", f"#{name} .main-svg"), name
            colours.append(opened.execute_script("return document.getElementById('front').layout.font.color"))
            browser.screenshot(opened, browser.ARTEFACTS / f"report-{width}-{'dark' if dark else 'light'}.png")
        assert colours == [figures.INK, figures.DARK[figures.INK]]
        n_points = len(opened.find_elements("css selector", "#front .scatterlayer .point"))
        assert n_points == n_placed + len(synthetic.LABELS)  # and a ring around each published one
        assert opened.execute_script("return document.documentElement.scrollWidth") == width
        assert browser.errors(opened) == []


@pytest.mark.slow
def test_on_a_desktop_no_column_of_a_confirmation_is_cut_off(results):
    failed = CONFIRMED.replace("0.97,autoattack", "0.97,autoattack; square; eps_falls; eps_large; more_steps")
    (results / "mine" / "confirmed.csv").write_text(failed)
    (results / "mine" / "gates.csv").write_text(GATES)
    report.main(["mine", "--results-dir", str(results)])
    with browser.chromium(browser.DESKTOP) as opened:
        opened.get((results / "mine" / "report.html").as_uri())
        wide, seen = opened.execute_script(
            "const box = document.getElementById('confirmed').parentElement; return [box.scrollWidth, box.clientWidth]"
        )
    assert wide == seen


def test_an_unknown_study_is_answered_with_the_nearest(results, capsys):
    assert report.main(["mien", "--results-dir", str(results)]) == 2
    assert capsys.readouterr().err == "error: name: 'mien' (did you mean 'mine'?); accepted: mine\n"


def test_an_unknown_study_of_a_storage_is_answered_with_the_nearest_of_that_storage(results, tmp_path, capsys):
    url = f"sqlite:///{results / 'mine' / 'study.db'}"
    assert report.main(["mien", "--storage", url, "--results-dir", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == "error: name: 'mien' (did you mean 'mine'?); accepted: mine\n"
    assert not (tmp_path / "new").exists()


def test_a_renamed_folder_is_told_from_the_study_that_it_holds(results, capsys):
    (results / "mine").rename(results / "yours")
    assert report.main(["yours", "--results-dir", str(results)]) == 2
    expected = f"error: name: {results / 'yours'} holds study 'mine'; accepted: a folder of that name\n"
    assert capsys.readouterr().err == expected


def test_a_report_where_it_cannot_be_written_is_refused_before_it_is_made(results, monkeypatch, capsys):
    monkeypatch.setattr(folders.os, "access", lambda path, mode: str(path) != str(results / "mine"))
    assert report.main(["mine", "--results-dir", str(results)]) == 2
    assert f"results_dir: {results / 'mine'} cannot be written" in capsys.readouterr().err


def test_a_results_folder_that_is_a_file_holds_no_study(tmp_path, capsys):
    (tmp_path / "results").touch()
    assert report.main(["mine", "--results-dir", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err.startswith("error: name: 'mine'; accepted: none yet")


def test_a_name_too_long_for_a_file_is_a_mistake(tmp_path, capsys):
    assert report.main(["x" * 300, "--results-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: name: 'xxx") and "File name too long" in err and err.count("\n") == 1


@pytest.mark.parametrize("command", [report, recommend, confirm])
def test_a_folder_of_another_study_of_that_name_is_left_alone(command, results, tmp_path, capsys):
    other = tmp_path / "other" / "mine"
    other.mkdir(parents=True)
    (other / "study.json").write_text(json.dumps({"settings": SETTINGS | {"eps": 0.3}}))
    given = ["mine", "--storage", f"sqlite:///{results / 'mine' / 'study.db'}", "--results-dir", str(other.parent)]
    assert command.main(given) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: name: {other} holds files of another study") and err.count("\n") == 1
    assert [path.name for path in other.iterdir()] == ["study.json"]


def test_where_no_study_is_that_is_said(tmp_path, capsys):
    assert report.main(["mine", "--results-dir", str(tmp_path)]) == 2
    assert "accepted: none yet" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def make(folder, settings=SETTINGS, directions=storage.DIRECTIONS):
    (folder / "mine").mkdir()
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'mine' / 'study.db'}", study_name="mine", directions=directions
    )
    if settings:
        study.set_user_attr("settings", settings)
    return study


def no_front(folder):
    add_unfinished(make(folder), TrialState.FAIL, "diverged: loss nan", [])


def another_programs(folder):
    make(folder, settings=None, directions=["minimize"])


def a_reproductions(folder):
    make(folder, SETTINGS | {"paper": "accelat"})


def a_confirmation(folder):
    make(folder, SETTINGS | {"search": "yours"})


def another_version(folder):
    make(folder)
    with sqlite3.connect(folder / "mine" / "study.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
        database.execute("UPDATE version_info SET schema_version = 3")


def not_a_database(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "study.db").write_text("hello" * 1000)


@pytest.mark.parametrize(
    "spoil,message",
    [
        (no_front, "name: 'mine' has no front (trials: 1 FAIL; diverged: loss nan)"),
        (another_programs, "name: 'mine' was not made by study.pareto"),
        (a_reproductions, "name: 'mine' was not made by study.pareto"),
        (a_confirmation, "name: 'mine' is a confirmation; accepted: the search 'yours'"),
        (another_version, "optuna storage upgrade"),
        (not_a_database, "file is not a database"),
    ],
)
def test_a_study_that_has_no_report_is_answered_by_one_line_and_status_2(spoil, message, tmp_path, capsys):
    spoil(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert report.main(["mine", "--results-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_angle_in_a_label_is_a_character_in_every_figure(results):
    with_confirmation(results)
    trials = storage.named("mine", str(results), None).get_trials()
    drawn = figures.front(trials, "measured", read_confirmed(results / "mine" / "confirmed.csv"))
    texts = [note.text for note in drawn.layout.annotations] + [str(trace.text) for trace in drawn.data]
    texts += [trace.name for trace in figures.curves(trials, "clean_accuracy", "measured").data]
    named = [text for text in texts if "Fixup" in text]
    assert len(named) >= 4 and all("Fixup &lt;8&gt;" in text and "<8>" not in text for text in named)


@pytest.mark.parametrize("label", ["$\\frac$", "SGD $x_{$"])
def test_a_dollar_in_a_label_is_a_character(label, tmp_path):
    study = optuna.create_study(directions=storage.DIRECTIONS)
    study.set_user_attr("settings", SETTINGS | {"name": label})
    add(study, 0.5, 10.0, label=label)
    page.write(study, tmp_path)
    assert (tmp_path / "front.png").exists() and (tmp_path / "report.html").exists()


def test_a_value_cannot_end_the_script_that_holds_it(tmp_path):
    study = optuna.create_study(directions=storage.DIRECTIONS)
    study.set_user_attr("settings", SETTINGS)
    value = "</script><b>"
    attrs = {"config": CONFIG, "clean_accuracy": 0.9, "n_examples": 100, "label": value}
    choices = {"x": CategoricalDistribution([value])}
    study.add_trial(create_trial(values=[0.5, 10.0], params={"x": value}, distributions=choices, user_attrs=attrs))
    page.write(study, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "</script><b>" not in text
    data = re.search(r'id="front-data">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(data)["layout"]["annotations"][0]["text"] == "&lt;/script&gt;&lt;b&gt;"
    assert any(f"x: {value}" in str(trace.get("text")) for trace in json.loads(data)["data"])


def test_importance_is_for_coming_into_the_best_quarter_and_not_into_the_worst():
    study = optuna.create_study(directions=storage.DIRECTIONS, sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(200):
        trial = study.ask()
        best, worst = (trial.suggest_float(name, 0, 1) for name in ("best", "worst"))
        value = 2.0 if best > 0.75 else worst
        study.tell(trial, [value, -value])
    found = importances.evaluate(study.trials)
    assert found.accuracy["best"] > 0.9 and found.seconds["best"] > 0.9


def test_twelve_trials_are_enough_for_importances():
    assert importances.evaluate(TestImportances.trials(12)).n_trials == 12
