import json
import math

import numpy as np
import pytest
from optuna.samplers import RandomSampler

from benchmarks.replay import compare, real, surrogate
from benchmarks.replay.simulate import Asha, OptunaStudy, Repeating, World, configure, simulate
from study.sampling import Draw
from study.stopping import Stopping


@pytest.fixture(scope="module")
def world():
    return World(surrogate.load())


def test_at_least_400_configurations_were_recorded_some_with_other_seeds():
    trials, _, _ = surrogate.read()
    numbers = [trial["number"] for trial in trials]
    assert len(set(numbers)) >= 400
    assert numbers.count(0) == 4
    assert all(len(trial["curve"]) == trial["config"]["epochs"] or trial["failure"] for trial in trials)


def test_a_curve_has_one_accuracy_and_one_time_an_epoch(world):
    config = configure(Draw(np.random.default_rng(0)))
    curve, seconds = world.surrogate.mean_curve(config), world.surrogate.epoch_seconds(config)
    assert curve.shape == seconds.shape == (config.epochs,)
    assert ((curve >= 0) & (curve <= 1)).all() and (seconds > 0).all()


def test_seconds_are_the_sum_over_steps(world):
    config = configure(Draw(np.random.default_rng(0)))
    config = config.model_copy(update={"training": "natural", "norm": "batchnorm", "epochs": 4})
    schedule = {
        "batch_size_schedule": surrogate.TrialConfig(
            batch_size_schedule={"kind": "constant", "size": 32}
        ).batch_size_schedule
    }
    config = config.model_copy(update=schedule)
    _, steps, n_examples = surrogate.read()
    row = steps[(steps.norm == "batchnorm") & (steps.training == "natural") & (steps.batch_size == 32)]
    assert n_examples % 32 == 0
    assert world.known_seconds(config) == pytest.approx(4 * n_examples / 32 * row.seconds.item())


def test_noise_has_the_spread_that_repeated_trainings_showed(world):
    flat, generator = np.full(20, 0.5), np.random.default_rng(0)
    finals = [world.surrogate.draw(flat, generator)[-1] for _ in range(500)]
    nearest = np.argsort(np.abs(world.surrogate.levels - 0.5))[:8]
    assert np.std(finals) == pytest.approx(world.surrogate.residuals[nearest, -1].std(), rel=0.15)


def test_workers_spend_no_more_than_the_budget_and_each_second_once(world):
    outcome = simulate(
        OptunaStudy(RandomSampler(seed=0), world.known_seconds), world.surrogate, n_workers=4, budget=40.0, seed=0
    )
    assert outcome.n_stopped == 0
    assert outcome.n_started - 4 == len(outcome.completed) > 5
    spent = [when for when, *_ in outcome.completed]
    assert spent == sorted(spent) and spent[-1] <= 40.0
    assert sum(seconds for *_, seconds in outcome.completed) <= 40.0


def test_the_same_seed_gives_the_same_search(world):
    def run():
        search = OptunaStudy(RandomSampler(seed=3), world.known_seconds)
        return simulate(search, world.surrogate, n_workers=2, budget=10.0, seed=3).completed

    assert run() == run()


@pytest.mark.parametrize("tell", ["pruned", "failed", "values", "constraint"])
def test_a_stopped_trial_is_counted_and_told(world, tell):
    search = OptunaStudy(RandomSampler(seed=0), world.known_seconds, Stopping(0.5, n_needed=3), tell)
    outcome = simulate(search, world.surrogate, n_workers=4, budget=40.0, seed=0)
    assert outcome.n_stopped > 0
    assert len(outcome.completed) + outcome.n_stopped == outcome.n_started - 4


def test_asha_stops_most_trials_before_their_ends(world):
    search = Asha(RandomSampler(seed=0), world.known_seconds, 3)
    outcome = simulate(search, world.surrogate, n_workers=4, budget=40.0, seed=0)
    assert outcome.n_stopped > len(outcome.completed)


def test_volume_is_of_what_was_completed_within_the_budget():
    points = np.array([[1.0, 0.5, 0.9, 2.0], [5.0, 0.8, 0.1, 4.0], [50.0, 1.0, 1.0, 1.0]])
    expected = 0.5 * math.log(compare.SLOWEST / 2) + 0.3 * math.log(compare.SLOWEST / 4)
    assert compare.volume(points, 10.0, log=True) == pytest.approx(expected)


def test_a_user_chooses_by_the_mean_of_a_configurations_trainings():
    # Device-seconds at the end, true and observed accuracy, seconds: the second configuration was lucky once.
    points = np.array([[1.0, 0.5, 0.5, 2.0], [2.0, 0.4, 0.9, 2.0], [3.0, 0.4, 0.0, 2.0], [4.0, 0.7, 0.7, 5.0]])
    assert sorted(compare.observed_front(points[:2])[:, 1]) == [0.4]
    assert sorted(compare.observed_front(points)[:, 1]) == [0.5, 0.7]
    assert compare.volume(points[:2], 9.0, log=True, chosen=True) < compare.volume(points[:2], 9.0, log=True)


def test_a_lucky_member_counts_as_truly_dominated():
    completed = [[1.0, 0.5, 0.5, 2.0], [2.0, 0.4, 0.9, 3.0], [99.0, 1.0, 1.0, 1.0]]
    searches = [{"method": "TPE", "completed": completed}]
    assert compare.dominated_share(searches, "TPE", 10.0) == 0.5
    assert compare.dominated_share(searches, "TPE", 1.0) == 0.0


def test_what_differs_in_anything_that_defines_a_run_is_run(world, monkeypatch, tmp_path):
    monkeypatch.setattr(compare.surrogate, "load", lambda model: world.surrogate)
    path = tmp_path / "runs.jsonl"

    def run(*options):
        assert compare.main(["run", str(path), "random", "--seeds", "1", "--budget", "5", *options]) == 0
        return len(path.read_text().splitlines())

    assert [run(), run(), run("--budget", "6"), run("--budget", "6")] == [1, 1, 2, 2]
    assert [run("--overhead", "0.1"), run("--model", "forest"), run("--first-seed", "1")] == [3, 4, 5]
    keys = [tuple(run[field] for field in compare.DEFINES) for run in compare.runs([path])]
    assert len(set(keys)) == 5 and keys[1] == ("random", 0, "process", 0.0, 6.0)


RUN = {"seed": 0, "model": "process", "overhead": 0.1, "budget": 60.0, "completed": [[1.0, 0.5, 0.5, 2.0]]}


def shown(folder, *searches):
    paths = [folder / f"{number}.jsonl" for number in range(len(searches))]
    for path, run in zip(paths, searches, strict=True):
        path.write_text(json.dumps(RUN | run) + "\n")
    return compare.main(["show", *map(str, paths)])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"method": "TPE", "model": "forest"}, "model: runs with forest and process given"),
        ({"method": "TPE", "overhead": 0.0}, "overhead: runs with 0.0 and 0.1 given"),
        ({"method": "front", "seed": 1, "budget": 120.0}, "budget: runs of 'front' with 60 and 120 given"),
        ({"method": "front"}, "seed: 2 runs of 'front' with seed 0 given"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_in_one_line(other, message, tmp_path, capsys):
    assert shown(tmp_path, {"method": "front"}, other) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and message in said.err


def test_a_search_with_less_budget_is_shown_up_to_there(tmp_path, capsys):
    assert shown(tmp_path, {"method": "front", "budget": 120.0}, {"method": "TPE"}) == 0
    front, tpe = capsys.readouterr().out.splitlines()
    assert "60 s: " in tpe and "120 s: " in front and "120 s: " not in tpe


@pytest.mark.parametrize("name", ["runs.jsonl.xz", "runs-forest.jsonl.xz"])
def test_the_recorded_searches_can_be_compared(name):
    compare.require_comparable(compare.runs([surrogate.RESULTS / name]))


@pytest.mark.parametrize(
    "argv, field", [(["run", "x", "frnt"], "names: 'frnt' (did you mean 'front'"), (["shw"], "shw")]
)
def test_a_mistake_gets_one_line(argv, field, capsys):
    assert compare.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and field in error


def test_repeats_are_of_front_members_with_the_fewest_trainings(world):
    search = Repeating(RandomSampler(seed=0), world.known_seconds, 0.5, 0)
    outcome = simulate(search, world.surrogate, n_workers=2, budget=40.0, seed=0)
    trainings = np.unique(np.array(outcome.completed)[:, [1, 3]], axis=0, return_counts=True)[1]
    assert trainings.sum() == len(outcome.completed) and 1 < trainings.max() < 0.5 * len(outcome.completed)
    assert len(outcome.completed) / 3 < (trainings - 1).sum() < len(outcome.completed) * 2 / 3


def test_a_search_that_is_there_in_a_third_of_the_budget_has_a_speed_up_of_three():
    budgets = np.arange(1.0, 61.0)
    peer = np.tile(budgets, (5, 1))
    np.testing.assert_allclose(compare.speed_up(3 * peer, peer, budgets, 30.0), 3.0)


def test_real_searches_are_compared_from_one_reference_point():
    points = {"front": np.array([[0.5, 2.0], [0.8, 4.0]]), "tpe": np.array([[0.5, 10.0]])}
    of = real.compared(points)  # seconds count to 11, a tenth beyond the slowest
    assert of["front"]["hypervolume"] == pytest.approx(0.5 * 9 + 0.3 * 7)
    assert of["tpe"]["hypervolume"] == pytest.approx(0.5 * 1)
    assert of["tpe"]["log_hypervolume"] == pytest.approx(0.5 * math.log(1.1))
    assert (of["front"]["complete"], of["front"]["device_seconds"]) == (2, 6.0)
    assert real.compared({"front": np.zeros((0, 2)), "tpe": points["tpe"]})["front"]["hypervolume"] == 0
