import numpy as np
import pytest

from study import forecast
from study.forecast import Forecast, point

# Configurations of the first kind rise by 0.5 over the second half of ten epochs, those of the second not at all.
KINDS = np.array([[0.0], [1.0]] * 20, dtype=np.float32)
CURVES = [[0.1] * 5 + [0.6] * 5 if kind == 0 else [0.1] * 10 for kind in KINDS[:, 0]]


def test_a_trial_is_expected_to_rise_as_its_kind_did():
    model = Forecast(KINDS, CURVES, seed=0)
    rising, _ = model.final(KINDS[0], [0.1] * 4, 0.4)
    flat, _ = model.final(KINDS[1], [0.1] * 4, 0.4)
    assert rising > 0.45 > 0.2 > flat


def test_what_is_left_of_the_schedule_decides_how_far():
    model = Forecast(KINDS, CURVES, seed=0)
    early, late = (model.final(KINDS[0], [accuracy], fraction)[0] for accuracy, fraction in [(0.1, 0.4), (0.6, 0.9)])
    assert early == pytest.approx(0.6, abs=0.15)
    assert late == pytest.approx(0.6, abs=0.1)


def test_no_final_accuracy_is_certain():
    assert Forecast(KINDS, CURVES, seed=0).final(KINDS[0], [0.6] * 9, 0.9)[1] >= forecast.LEAST_DEVIATION


def test_a_long_schedule_does_not_outweigh_the_others(monkeypatch):
    seen = []
    monkeypatch.setattr(forecast.ExtraTreesRegressor, "fit", lambda self, x, y: seen.append((x.shape, len(y))))
    Forecast(KINDS[:2], [[0.1] * 200, [0.1, 0.2]], seed=0)
    assert seen == [((forecast.MAX_POINTS + 1, 4), forecast.MAX_POINTS + 1)]


def test_only_the_newest_curves_are_learned_from(monkeypatch):
    monkeypatch.setattr(forecast, "MAX_CURVES", 20)
    then, now = [[0.1, 0.1]] * 20, [[0.1, 0.9]] * 20
    assert Forecast(KINDS, then + now, seed=0).final(KINDS[0], [0.1], 0.5)[0] == pytest.approx(0.9)


def test_a_point_has_the_newest_and_the_best_accuracy():
    assert point(np.array([7.0]), [0.1, 0.5, 0.3], 0.25) == pytest.approx([7.0, 0.25, 0.3, 0.5])


def test_each_epoch_but_the_last_says_how_far_it_was_to_the_end(monkeypatch):
    seen = []
    monkeypatch.setattr(forecast.ExtraTreesRegressor, "fit", lambda self, x, y: seen.append((x, y)))
    Forecast(KINDS[:1], [[0.1, 0.3, 0.2, 0.25]], seed=0)
    ((x, rises),) = seen
    np.testing.assert_allclose(x, [[0, 0.25, 0.1, 0.1], [0, 0.5, 0.3, 0.3], [0, 0.75, 0.2, 0.3]], rtol=1e-6)
    assert rises == pytest.approx([0.15, -0.05, 0.05])


def test_a_trial_is_expected_to_rise_from_where_it_stands_and_not_from_its_best():
    flat = Forecast(KINDS, [[0.1] * 10] * len(KINDS), seed=0)
    assert flat.final(KINDS[0], [0.6, 0.2], 0.2)[0] == pytest.approx(0.2)


def test_where_finished_trials_disagree_the_end_is_less_certain():
    generator = np.random.default_rng(0)
    kinds = generator.normal(size=(60, 3))
    curves = [[0.1, 0.9] if generator.random() < 0.5 else [0.1, 0.1] for _ in kinds]
    doubts = [Forecast(kinds, curves, seed=0).final(kind, [0.1], 0.5)[1] for kind in kinds]
    assert np.mean(doubts) > 1.2 * forecast.LEAST_DEVIATION
