import pytest
from optuna.trial import TrialState, create_trial

from study.stopping import RunningTrial, Stopping, final_accuracy, rises
from trainables.config import TrialConfig

CONFIG = TrialConfig(epochs=10)


def trial(curve, seconds=10.0, state=TrialState.COMPLETE, **attrs):
    rows = [{"adversarial_accuracy": accuracy} for accuracy in curve]
    config = CONFIG.model_dump(mode="json")
    values = [curve[-1], seconds] if state is TrialState.COMPLETE else None
    return create_trial(state=state, values=values, user_attrs={"curve": rows, "config": config, **attrs})


def rows(*curve):
    return [{"adversarial_accuracy": accuracy} for accuracy in curve]


# Ten finished trials that rise by 0.1 to 0.55 over the second half of their schedules.
FINISHED = [trial([0.1] * 5 + [0.2 + 0.05 * i] * 5, seconds=10 + i) for i in range(10)]


def test_rises_are_counted_from_the_same_fraction_of_each_schedule():
    curves = [[0.0, 0.1, 0.4, 0.5], [0.2, 0.6], []]
    assert rises(curves, 0.5) == pytest.approx([0.4, 0.4])
    assert rises(curves, 1.0) == pytest.approx([0.0, 0.0])
    assert rises(curves, 0.01) == pytest.approx([0.5, 0.4])  # before the first epoch's end its accuracy counts


def test_a_trial_is_stopped_where_no_finished_one_rose_as_far_as_it_must():
    # The best member within 30 s has 0.65; the largest rise from half is 0.55.
    rule = Stopping(quantile=1.0)
    assert rule(RunningTrial(CONFIG, "", rows(*[0.05] * 5), 1.0, 29.0), FINISHED) is not None
    assert rule(RunningTrial(CONFIG, "", rows(*[0.15] * 5), 1.0, 29.0), FINISHED) is None


def test_the_reason_names_what_decided():
    reason = Stopping(quantile=1.0)(RunningTrial(CONFIG, "", rows(*[0.05] * 5), 1.0, 29.0), FINISHED)
    assert reason == (
        "accuracy 0.050 after 5 of 10 epochs, 0.600 expected at most, and the front has 0.650 in less time"
    )


def test_a_trial_quicker_than_every_front_member_goes_on():
    assert Stopping()(RunningTrial(CONFIG, "", rows(*[0.0] * 9), 1.0, 8.9), FINISHED) is None


def test_a_published_configuration_is_never_stopped():
    hopeless = rows(*[0.0] * 9)
    assert Stopping()(RunningTrial(CONFIG, "", hopeless, 1.0, 98.0), FINISHED) is not None
    assert Stopping()(RunningTrial(CONFIG, "Fixup 8→128", hopeless, 1.0, 98.0), FINISHED) is None


def test_nothing_is_stopped_before_enough_trials_have_finished():
    others = [trial([0.9] * 10, state=TrialState.PRUNED) for _ in range(20)]
    assert Stopping(n_needed=11)(RunningTrial(CONFIG, "", rows(0.0), 1.0, 98.0), FINISHED + others) is None


def test_trials_that_did_not_complete_say_nothing_about_rises_or_the_front():
    failed = [trial([0.0] * 9 + [1.0], state=TrialState.FAIL) for _ in range(50)]
    curve = rows(*[0.05] * 5)
    said = [
        Stopping(1.0)(RunningTrial(CONFIG, "", curve, 1.0, 29.0), trials) for trials in (FINISHED, failed + FINISHED)
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "ended,accuracy",
    [
        (trial([0.1, 0.4]), 0.4),
        (trial([0.1, 0.3], state=TrialState.PRUNED), 0.3),
        (trial([0.3, 0.2], state=TrialState.PRUNED), 0.2),
        (trial([0.1], state=TrialState.FAIL, reason="diverged: loss nan in epoch 2 of 10"), 0.0),
        (trial([0.1], state=TrialState.FAIL, reason="machine: worker or node lost, 4 times"), None),
        (create_trial(state=TrialState.PRUNED), None),
    ],
)
def test_what_an_end_says_about_a_configuration(ended, accuracy):
    assert final_accuracy(ended) == accuracy


def test_the_largest_rise_of_all_counts_unless_another_quantile_is_given():
    trials = FINISHED + [trial([0.0] * 5 + [0.7] * 5, seconds=40.0)]
    running = RunningTrial(CONFIG, "", rows(*[0.05] * 5), 1.0, 29.0)
    assert Stopping()(running, trials) is None
    assert Stopping(quantile=0.5)(running, trials) is not None


def test_a_member_that_took_just_as_long_counts_as_quicker():
    as_long = RunningTrial(CONFIG, "", rows(*[0.05] * 5), 1.0, 18.0)  # 19 s, as the slowest, of accuracy 0.65
    assert "the front has 0.650" in Stopping()(as_long, FINISHED)


def test_a_trial_that_has_reached_the_front_goes_on_though_all_others_fell():
    falling = [trial([0.9] * 5 + [0.5] * 5, seconds=10 + i) for i in range(10)]
    assert Stopping()(RunningTrial(CONFIG, "", rows(*[0.6] * 5), 1.0, 29.0), falling) is None


def test_between_two_epochs_the_earlier_one_counts():
    assert rises([[0.0, 0.1, 0.4, 0.5]], 0.6) == pytest.approx([0.4])
    assert rises([[0.0] * 28 + [0.5] * 72], 29 / 100) == pytest.approx([0.0])


def test_a_trial_that_may_still_end_as_accurate_goes_on():
    finished = [trial([0.25] * 5 + [0.75] * 5, seconds=10 + i) for i in range(10)]
    assert Stopping()(RunningTrial(CONFIG, "", rows(*[0.25] * 5), 1.0, 29.0), finished) is None
    assert Stopping()(RunningTrial(CONFIG, "", rows(*[0.24] * 5), 1.0, 29.0), finished) is not None


def test_what_finished_trials_rose_by_in_epochs_that_this_one_has_had_is_not_expected_of_it():
    finished = [trial([0.1] * 4 + [0.6] * 6, seconds=10 + i) for i in range(10)]
    assert Stopping()(RunningTrial(CONFIG, "", rows(*[0.1] * 4), 1.0, 29.0), finished) is None
    assert Stopping()(RunningTrial(CONFIG, "", rows(*[0.1] * 5), 1.0, 29.0), finished) is not None
