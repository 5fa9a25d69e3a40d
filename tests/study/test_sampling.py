import math
from functools import partial

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from study import calibration, spaces
from study.forecast import Forecast
from study.front import hypervolume
from study.sampling import (
    N_FRESH,
    N_NEAR,
    N_POOL,
    PLAIN_WEIGHT,
    Draw,
    FrontSampler,
    expected_gain,
    expected_share,
    features,
    log_hypervolume,
)
from study.settings import StudySettings
from study.stopping import RunningTrial
from study.storage import DIRECTIONS
from trainables.config import trial_config
from trainables.errors import InputError

FRONT = np.array([[0.3, 2.0], [0.5, 5.0], [0.45, 6.0], [0.8, 20.0]])  # the third is dominated
SETTINGS = StudySettings(name="a", space="full")
SPACE = spaces.load("full")
configure = partial(spaces.configure, SPACE, SETTINGS)


def seconds_of(config):
    return 0.5 * config.epochs


def study_of(sampler, n=0, accuracy=lambda config: 0.5):
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    for _ in range(n):
        ask_and_tell(study, accuracy)
    return study


def ask(study):
    trial = study.ask()
    config = configure(trial)
    trial.set_user_attr("config", config.model_dump(mode="json"))
    return trial, config


def ask_and_tell(study, accuracy):
    trial, config = ask(study)
    study.tell(trial, [accuracy(config), seconds_of(config)])
    return config


def test_a_name_that_is_suggested_again_has_its_first_value():
    draw = Draw(np.random.default_rng(0))
    seen = {
        (draw.suggest_categorical("a", range(100)), draw.suggest_float("b", 0, 1), draw.suggest_int("c", 0, 99))
        for _ in range(20)
    }
    assert seen == {tuple(draw.params.values())}


def test_nothing_is_proposed_twice_while_there_is_something_else():
    def space(trial):
        trial.suggest_int("epochs", 1, 6)

    few = partial(spaces.configure, spaces.Space(SPACE.path, space, {}, {}), SETTINGS)
    study = optuna.create_study(directions=DIRECTIONS, sampler=FrontSampler(few, lambda study: seconds_of, 0, 2))
    for number in range(6):
        trial = study.ask()  # none waits for the one before
        config = few(trial)
        trial.set_user_attr("config", config.model_dump(mode="json"))
        if number % 2:
            study.tell(trial, [0.1, seconds_of(config)])
    assert sorted(trial.params["epochs"] for trial in study.trials) == [1, 2, 3, 4, 5, 6]
    again = optuna.create_study(directions=DIRECTIONS, sampler=FrontSampler(few, lambda study: seconds_of, 1, 2))
    again.add_trials([trial for trial in study.trials if trial.state.is_finished()])
    known = {trial.params["epochs"] for trial in again.trials}
    assert few(again.ask()).epochs not in known
    for _ in range(8):  # when everything has been tried
        few(again.ask())
    stopped = optuna.create_study(directions=DIRECTIONS, sampler=FrontSampler(few, lambda study: seconds_of, 2, 2))
    for epochs, state in [(1, "PRUNED"), (2, "FAIL"), (3, "PRUNED"), (4, "FAIL"), (5, "PRUNED")]:
        params, distributions = {"epochs": epochs}, {"epochs": IntDistribution(1, 6)}
        stopped.add_trial(create_trial(state=TrialState[state], params=params, distributions=distributions))
    assert few(stopped.ask()).epochs == 6


def test_what_runs_already_is_not_proposed_whoever_proposed_it():
    def space(trial):
        trial.suggest_categorical("depth", [8, 14])

    few = partial(spaces.configure, spaces.Space(SPACE.path, space, {}, {}), SETTINGS)
    for seed in range(10):
        study = optuna.create_study(directions=DIRECTIONS, sampler=FrontSampler(few, lambda study: seconds_of, seed))
        study.enqueue_trial({"depth": 8})
        running = study.ask()
        running.set_user_attr("config", few(running).model_dump(mode="json"))
        assert few(study.ask()).depth == 14


def test_candidates_are_timed_anew_when_more_has_been_measured():
    tables = {"resnet8 fixup tf32 natural": {"128": 1.0}}
    sampler = FrontSampler(configure, lambda study: calibration.Timer(1000, dict(tables)), seed=0)
    study = study_of(sampler, n=1)
    ask(study)
    before = [candidate.seconds for candidate in sampler.pool]
    ask(study)
    assert [candidate.seconds for candidate in sampler.pool[:-N_FRESH]] == before[N_FRESH:]
    tables["resnet8 fixup tf32 natural"] = {"128": 2.0}
    ask(study)
    kept = sampler.pool[: -2 * N_FRESH]
    assert [candidate.seconds for candidate in kept] == pytest.approx([2 * value for value in before[2 * N_FRESH :]])


def front_sampler(**options):
    return FrontSampler(configure, lambda study: seconds_of, seed=0, **options)


def test_a_certain_accuracy_is_expected_to_add_what_it_adds():
    points = np.array([[0.6, 3.0], [0.2, 1.0], [0.4, 10.0], [0.9, 30.0], [0.7, 8.0]])
    gain = expected_gain(points[:, 0], np.full(5, 1e-9), points[:, 1], FRONT, 40.0)
    grown = [log_hypervolume(np.vstack([FRONT, point]), 40.0) - log_hypervolume(FRONT, 40.0) for point in points]
    np.testing.assert_allclose(gain, grown, atol=1e-8)


def test_the_expected_gain_is_the_mean_over_draws():
    draws = np.random.default_rng(0).normal(0.55, 0.1, 4000)
    grown = [log_hypervolume(np.vstack([FRONT, [draw, 4.0]]), 40.0) for draw in draws]
    gain = expected_gain(np.array([0.55]), np.array([0.1]), np.array([4.0]), FRONT, 40.0)
    standard_error = np.std(grown) / math.sqrt(len(draws))
    assert gain[0] == pytest.approx(np.mean(grown) - log_hypervolume(FRONT, 40.0), abs=4 * standard_error)


def test_nothing_is_expected_of_what_is_slower_than_the_slowest_that_counts():
    assert expected_gain(np.array([0.99]), np.array([0.1]), np.array([41.0]), FRONT, 40.0)[0] == 0


def test_with_no_front_yet_a_point_adds_its_accuracy_over_all_slower_seconds():
    gain = expected_gain(np.array([0.6]), np.array([1e-9]), np.array([4.0]), np.zeros((0, 2)), 40.0)
    assert gain[0] == pytest.approx(0.6 * math.log(10))


def test_the_share_weighs_log_seconds_and_plain_ones():
    point, nearly_certain = np.array([[0.6, 3.0]]), np.array([1e-9])
    share = expected_share(point[:, 0], nearly_certain, point[:, 1], FRONT, 40.0)
    grown = [
        measure(np.vstack([FRONT, point])) / measure(FRONT) - 1
        for measure in (lambda points: log_hypervolume(points, 40.0), lambda points: hypervolume(points, (0.0, 40.0)))
    ]
    assert share[0] == pytest.approx(np.average(grown, weights=[1 - PLAIN_WEIGHT, PLAIN_WEIGHT]), abs=1e-7)


@pytest.mark.parametrize("name", spaces.names())
def test_draws_of_every_space_are_configurations_and_finite_features(name):
    space, generator = spaces.load(name), np.random.default_rng(0)
    near = None
    for _ in range(50):
        draw = Draw(generator, near)
        config = (
            spaces.configure(space, StudySettings(name="a", depth=8), draw)
            if name == "quickstart"
            else (spaces.configure(space, SETTINGS, draw))
        )
        assert np.isfinite(features(config, 3.0)).all()
        near = draw.params


def test_a_neighbour_keeps_most_of_its_parameters():
    generator = np.random.default_rng(0)
    first = Draw(generator)
    configure(first)
    shares = []
    for _ in range(50):
        near = Draw(generator, first.params)
        configure(near)
        shared = set(first.params) & set(near.params)
        shares.append(np.mean([first.params[name] == near.params[name] for name in shared]))
    assert 0.6 < np.mean(shares) < 0.9


def test_a_space_may_note_something_on_its_trial():
    def configure_and_note(trial):
        trial.set_user_attr("note", "mine")
        return configure(trial)

    study = study_of(FrontSampler(configure_and_note, lambda study: seconds_of, seed=0), n=3)
    assert len(study.trials) == 3


def test_integers_are_drawn_evenly_ends_included():
    generator = np.random.default_rng(0)
    drawn = [Draw(generator).suggest_int("n", 1, 4) for _ in range(2000)]
    assert np.bincount(drawn)[1:] == pytest.approx([500] * 4, abs=90)


def test_draws_on_a_logarithmic_scale_are_as_many_in_each_factor_of_ten():
    generator = np.random.default_rng(0)
    rates = [Draw(generator).suggest_float("x", 1e-4, 1.0, log=True) for _ in range(2000)]
    assert np.histogram(np.log10(rates), [-4, -3, -2, -1, 0])[0] == pytest.approx([500] * 4, abs=90)
    sizes = [Draw(generator).suggest_int("n", 1, 10_000, log=True) for _ in range(2000)]
    assert np.median(sizes) == pytest.approx(100, rel=0.4)


def test_draws_are_those_that_optuna_would_take():
    generator = np.random.default_rng(0)
    for near in ({}, {"n": 10, "x": 0.9}):
        for _ in range(50):
            draw = Draw(generator, near)
            assert draw.suggest_int("n", 1, 10, step=2) in (1, 3, 5, 7, 9)
            assert 0 <= draw.suggest_float("x", 0.0, 0.5) <= 0.5
            assert draw.suggest_categorical("norm", {"batchnorm", "fixup"}) in ("batchnorm", "fixup")
            assert draw.distributions["n"] == IntDistribution(1, 9, step=2)


def test_an_interrupted_trial_keeps_its_parameters_and_nothing_is_proposed_for_it():
    study = study_of(front_sampler(), n=1)
    trial = study.ask()
    configure(trial)
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    study.sampler.propose = lambda trials: pytest.fail("nothing to propose")
    again = study.ask()
    configure(again)
    assert (again.number, again.params) == (trial.number, trial.params)


def test_no_trial_beyond_the_seconds_allowed_is_proposed():
    study = study_of(front_sampler(max_seconds=10.0, n_startup=5))
    for _ in range(15):
        assert seconds_of(ask_and_tell(study, lambda config: 0.01 * config.epochs)) <= 10.0


def test_seconds_that_no_configuration_meets_are_one_line():
    with pytest.raises(InputError, match="max_trial_seconds: 1 given; accepted: at least 5, the quickest of"):
        study_of(front_sampler(max_seconds=1.0)).ask()


def test_proposals_come_before_any_seconds_are_known():
    study = study_of(FrontSampler(configure, lambda study: lambda config: None, seed=0), n=3)
    assert len(study.trials) == 3
    assert study.sampler.gain_per_hour is None


def test_at_the_start_a_trial_sixteen_times_as_quick_is_four_times_as_likely():
    sampler = front_sampler()
    sampler.expected_seconds = lambda config: 1.0 if config.training in ("natural", "fgsm", "static") else 16.0
    proposed, drawn = [], []
    for _ in range(300):
        proposed.append(sampler.propose([])["training"] in ("natural", "fgsm", "static"))
        drawn += [candidate.seconds == 1.0 for candidate in sampler.pool]
    odds, of_draws = (np.mean(quick) / (1 - np.mean(quick)) for quick in (proposed, drawn))
    assert 2.5 < odds / of_draws < 6


def test_after_the_start_the_accurate_and_quick_are_proposed():
    def accuracy(config):
        return 0.8 if config.training == "free" else 0.1

    study = study_of(front_sampler(), n=40, accuracy=accuracy)
    late = [trial.params["training"] for trial in study.trials[25:]]
    assert late.count("free") > len(late) / 2  # one in six at random


@pytest.mark.parametrize(
    ("field", "suggest", "is_good"),
    [
        ("eps", lambda trial: trial.suggest_float("eps", 0.0, 0.1), lambda value: 0.04 < value < 0.06),
        ("step_size", lambda trial: trial.suggest_float("step_size", 0.001, 0.1, log=True), lambda value: value > 0.05),
        (
            "attack_norm",
            lambda trial: trial.suggest_categorical("attack_norm", ["linf", "l2"]),
            lambda value: value == "l2",
        ),
        (
            "precision",
            lambda trial: trial.suggest_categorical("precision", ["tf32", "bf16"]),
            lambda value: value == "bf16",
        ),
    ],
)
def test_what_few_spaces_vary_is_learned_too(field, suggest, is_good):
    def configured(trial):
        suggest(trial)
        trial.suggest_categorical("weight_decay", [1e-4, 2e-4, 3e-4, 4e-4])  # so that there is always something untried
        return trial_config({"training": "pgd"} | trial.params)

    sampler = FrontSampler(configured, lambda study: lambda config: 10.0, seed=0)
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    chosen = []
    for _ in range(40):
        trial = study.ask()
        config = configured(trial)
        trial.set_user_attr("config", config.model_dump(mode="json"))
        study.tell(trial, [0.8 if is_good(getattr(config, field)) else 0.1, 10.0])
        chosen.append(getattr(config, field))
    assert sampler.also == [field]
    late = chosen[sampler.n_startup :]
    assert sum(map(is_good, late)) > 0.75 * len(late)  # a tenth to a half at random


def test_spaces_here_vary_none_of_it():
    for name in spaces.names():
        sampler = FrontSampler(partial(spaces.configure, spaces.load(name), SETTINGS), lambda study: seconds_of, seed=0)
        study_of(sampler).ask()
        assert sampler.also == []


def test_a_running_trial_lowers_what_its_double_would_add():
    study = study_of(front_sampler(), n=12, accuracy=lambda config: 0.01 * config.epochs)
    proposals = [ask(study)[1] for _ in range(4)]
    assert len({config.epochs for config in proposals}) > 1


def test_trials_that_run_and_no_others_are_believed_to_end_after_the_seconds_expected_of_them():
    study = study_of(front_sampler(n_startup=3), n=4)
    seconds = [seconds_of(ask(study)[1]) for _ in range(2)]
    believed = study.sampler._believed(study.trials, study.sampler.model)
    np.testing.assert_allclose(believed, np.column_stack([[0.5, 0.5], seconds]), rtol=1e-5)


def test_an_earlier_study_is_learned_from_but_not_on_the_front():
    earlier = study_of(
        optuna.samplers.RandomSampler(seed=0), n=60, accuracy=lambda c: 0.8 if c.norm == "fixup" else 0.1
    )
    study = study_of(front_sampler(earlier=earlier.trials))
    assert ask(study)[1].norm == "fixup"
    assert study.sampler.gain_per_hour is None  # there is no front yet to gain on


def test_a_study_that_starts_from_many_trials_learns_from_each_of_its_own():
    earlier = study_of(optuna.samplers.RandomSampler(seed=0), n=60)
    study = study_of(front_sampler(earlier=earlier.trials))
    fitted = []
    for _ in range(3):
        ask_and_tell(study, lambda config: 0.5)
        fitted.append(study.sampler.n_fitted)
    assert fitted == [0, 1, 2]


def test_the_expected_gain_shrinks_as_the_front_fills():
    def accuracy(config):
        return 0.8 if config.training == "free" else 0.1

    study = study_of(front_sampler(), n=12, accuracy=accuracy)
    early = study.sampler.gain_per_hour
    for _ in range(20):
        ask_and_tell(study, accuracy)
    assert 0 < study.sampler.gain_per_hour < early


def test_what_was_stopped_early_counts_as_it_stood():
    study = study_of(front_sampler(n_startup=2), n=3)
    trial, _ = ask(study)
    trial.set_user_attr("curve", [{"adversarial_accuracy": 0.07}])
    study.tell(trial, state=TrialState.PRUNED)
    assert study.sampler._learnt(study.get_trials())[1][-1] == 0.07
    ask(study)
    assert study.sampler.n_fitted == 4


def test_seconds_expected_follow_the_pace_that_trials_kept():
    study = study_of(front_sampler(n_startup=5, max_seconds=60.0))
    for _ in range(12):
        trial, config = ask(study)
        study.tell(trial, [0.01 * config.epochs, 3 * seconds_of(config)])
    assert study.sampler._pace(study.trials) == pytest.approx(3.0, rel=1e-5)
    assert all(3 * seconds_of(ask(study)[1]) <= 60.0 for _ in range(3))
    assert study.sampler.gain_per_hour > 0


def rising_study(n=30):
    """Free training rises from 0.1 to 0.8 in its second half, all else stays at 0.1."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=front_sampler())
    for _ in range(n):
        trial, config = ask(study)
        curve = [0.1] * (config.epochs // 2) + [0.8 if config.training == "free" else 0.1] * (
            config.epochs - config.epochs // 2
        )
        trial.set_user_attr("curve", rows(curve))
        study.tell(trial, [curve[-1], seconds_of(config)])
    ask(study)
    return study


def rows(curve):
    return [{"adversarial_accuracy": accuracy} for accuracy in curve]


def stop(study, training, epoch=10, label="", epochs=30):
    """What the rule says of a trial of that training that stands at 0.1 after the epoch."""
    config = configure(Draw(np.random.default_rng(0))).model_copy(update={"training": training, "epochs": epochs})
    seconds = seconds_of(config)
    done = epoch / epochs * seconds
    running = RunningTrial(config, label, rows([0.1] * epoch), done, seconds - done)
    return study.sampler.stop(running, study.get_trials())


def test_a_trial_goes_on_where_its_kind_rose_late_and_is_stopped_where_it_did_not():
    study = rising_study()
    assert stop(study, "free") is None
    assert "accuracy 0.100 after 10 of 30 epochs" in stop(study, "natural")


def test_the_fewer_seconds_are_left_the_more_a_new_trial_must_promise():
    study = rising_study()
    promised = study.sampler.rate * 1.2 ** np.arange(-20, 60)

    def needed(epoch):
        for rate in promised:
            study.sampler.rate = rate
            if stop(study, "free", epoch):
                return rate
        return np.inf

    assert needed(3) < needed(14)


def test_the_forecast_is_asked_for_the_end_from_where_the_schedule_stands(monkeypatch):
    study, asked = rising_study(n=12), []
    final = Forecast.final
    monkeypatch.setattr(Forecast, "final", lambda *given: asked.append((len(given[2]), given[3])) or final(*given))
    for epoch in (3, 15):
        stop(study, "free", epoch)
    assert asked == [(3, 0.1), (15, 0.5)]


def test_a_published_configuration_goes_on_whatever_a_new_trial_promises():
    study = rising_study()
    assert stop(study, "natural") is not None
    assert stop(study, "natural", label="Fixup 128") is None


def test_nothing_is_stopped_before_enough_have_finished():
    study = rising_study(n=5)
    study.sampler.rate = 1e9
    assert stop(study, "natural") is None


def test_an_earlier_study_tells_how_far_trials_rise():
    study = study_of(front_sampler(earlier=rising_study().get_trials()), n=1)
    ask(study)
    assert stop(study, "natural") is not None


def test_a_front_member_beyond_the_reference_changes_nothing():
    candidate = np.array([0.6]), np.array([0.1]), np.array([2.0])
    front = np.array([[0.5, 1.0], [0.9, 100.0]])
    assert expected_gain(*candidate, front, 10.0) == pytest.approx(expected_gain(*candidate, front[:1], 10.0))


@pytest.mark.parametrize(
    ("training", "read", "unread"),
    [
        ("natural", "epochs", "pgd_steps"),
        ("pgd", "pgd_steps", "free_replays"),
        ("pgd", "depth", "trades_beta"),
        ("free", "free_replays", "pgd_steps"),
        ("trades", "trades_beta", "free_replays"),
    ],
)
def test_of_a_training_the_models_see_what_it_reads(training, read, unread):
    config = trial_config({"training": training})

    def seen(field):
        more = 6 if field == "depth" else 1
        return features(config.model_copy(update={field: getattr(config, field) + more}), 3.0)

    assert (seen(read) != features(config, 3.0)).any()
    assert (seen(unread) == features(config, 3.0)).all()


def test_nothing_is_proposed_for_a_trial_that_was_enqueued():
    study = study_of(front_sampler())
    study.enqueue_trial({"training": "fgsm"})
    study.sampler.propose = lambda trials: pytest.fail("nothing to propose")
    assert ask(study)[1].training == "fgsm"


def test_ended_trials_are_timed_anew_when_more_has_been_measured_and_the_model_learns_from_that():
    tables = {"resnet8 fixup tf32 natural": {"128": 1.0}}
    sampler = FrontSampler(configure, lambda study: calibration.Timer(1000, dict(tables)), seed=0, n_startup=3)
    study = study_of(sampler)
    for _ in range(4):
        trial, config = ask(study)
        study.tell(trial, [0.5, calibration.Timer(1000, dict(tables))(config)])
    ask(study)
    model = sampler.model
    assert sampler._pace(study.trials[:4]) == pytest.approx(1.0, rel=1e-5)
    tables["resnet8 fixup tf32 natural"] = {"128": 2.0}
    ask(study)
    assert sampler._pace(study.trials[:4]) == pytest.approx(0.5, rel=1e-5)
    assert sampler.model is not model


def slow_study(max_seconds):
    """Of three trials, each of which took three times the seconds that were expected."""
    study = study_of(front_sampler())
    for _ in range(3):
        trial, config = ask(study)
        study.tell(trial, [0.5, 3 * seconds_of(config)])
    study.sampler = front_sampler(max_seconds=max_seconds)
    return study


def test_the_seconds_allowed_are_those_that_trials_take_and_not_those_expected():
    study = slow_study(max_seconds=40.0)
    assert all(3 * seconds_of(ask(study)[1]) <= 40.0 for _ in range(12))
    with pytest.raises(InputError, match="max_trial_seconds: 10 given; accepted: at least 15, the quickest of"):
        slow_study(max_seconds=10.0).ask()


def test_the_models_are_asked_as_soon_as_enough_trials_have_ended():
    study, asked = study_of(front_sampler(n_startup=3)), []
    for _ in range(4):
        ask_and_tell(study, lambda config: 0.5)
        asked.append(study.sampler.model is not None)
    assert asked == [False, False, False, True]


def test_neighbours_are_those_of_front_members():
    study = study_of(front_sampler())
    (best, first), (dominated, second) = ask(study), ask(study)
    assert seconds_of(first) != seconds_of(second)
    study.tell(best, [0.9, 1.0])
    study.tell(dominated, [0.1, 2.0])
    near = study.sampler._candidates(study.trials)[:N_NEAR]
    assert len(study.sampler._candidates(study.trials)) == N_POOL + N_NEAR

    def shared(trial):
        return np.mean([len(candidate.params.items() & trial.params.items()) for candidate in near])

    assert shared(best) > 1.5 * shared(dominated)


def paced_gains(pace, values=lambda config: [0.01 * config.epochs, seconds_of(config)], **options):
    study = study_of(front_sampler(n_startup=5, **options))
    for _ in range(7):
        trial, config = ask(study)
        accuracy, seconds = values(config)
        study.tell(trial, [accuracy, pace * seconds])
    ask(study)  # which goes on
    return study, pace * seconds_of(ask(study)[1])


def test_trials_that_all_take_three_times_as_long_add_as_much_in_three_times_the_hours():
    (study, seconds), (slow, slow_seconds) = paced_gains(1.0), paced_gains(3.0)
    assert slow_seconds == pytest.approx(3 * seconds)
    assert slow.sampler.gain == pytest.approx(study.sampler.gain, rel=1e-3)
    for each, of_it in [(study, seconds), (slow, slow_seconds)]:
        assert each.sampler.gain_per_hour == pytest.approx(3600 * each.sampler.gain / of_it)
        assert 0 < each.sampler.rate < each.sampler.gain / of_it  # by `PATIENCE`


@pytest.mark.parametrize("values", [[0.0, 5.0], [0.5, 1e6]])
def test_where_nothing_lies_within_the_reference_a_gain_has_nothing_to_be_a_share_of(values):
    study, _ = paced_gains(1.0, lambda config: values, max_seconds=None)
    study.sampler._pace = lambda complete: 1.0
    ask(study)
    assert study.sampler.model is not None and study.sampler.gain_per_hour is None


def test_a_trial_slower_than_any_candidate_is_judged_up_to_its_own_end():
    study = rising_study(n=16)
    study.sampler.slowest = 10.0
    assert stop(study, "free") is None


def test_stopped_trials_do_not_tell_how_far_others_rise():
    study = rising_study(n=5)
    for _ in range(20):
        trial, _ = ask(study)
        trial.set_user_attr("curve", rows([0.1, 0.1]))
        study.tell(trial, state=TrialState.PRUNED)
    study.sampler.rate = 1e9
    assert stop(study, "natural") is None


def ended(study, training):
    """Adds a trial of that training, of which free ones rise in the second half of their schedule."""
    config = configure(Draw(study.sampler.generator)).model_copy(update={"training": training, "epochs": 30})
    curve = [0.1] * 15 + [0.8 if training == "free" else 0.1] * 15
    attrs = {"config": config.model_dump(mode="json"), "curve": rows(curve)}
    study.add_trial(create_trial(values=[curve[-1], seconds_of(config)], user_attrs=attrs))


def test_a_trial_of_an_earlier_study_is_not_taken_for_the_one_of_that_number():
    earlier = study_of(front_sampler())
    study = study_of(front_sampler(earlier=earlier_trials(earlier)))
    for _ in range(12):
        ended(study, "natural")
    ask(study)
    assert stop(study, "free") is None and stop(study, "natural") is not None
    x, accuracies = study.sampler._learnt(study.trials)
    of_free = [tuple(row) for row, accuracy in zip(x, accuracies, strict=True) if accuracy == 0.8]
    of_others = [tuple(row) for row, accuracy in zip(x, accuracies, strict=True) if accuracy == 0.1]
    assert len(of_free) == len(of_others) == 12 and not set(of_free) & set(of_others)


def earlier_trials(study):
    for _ in range(12):
        ended(study, "free")
    return study.trials
