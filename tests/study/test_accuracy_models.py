import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from study import accuracy_models, spaces
from study.accuracy_models import AccuracyModel, Forest, Process, most_telling
from study.sampling import Draw, features
from study.settings import StudySettings

SPACE, SETTINGS = spaces.load("full"), StudySettings(name="a", space="full")
FITTED = [lambda x, y: AccuracyModel(x, y, 0), lambda x, y: Forest(x, y, 0), Process]


def configs(n):
    generator = np.random.default_rng(0)
    return [spaces.configure(SPACE, SETTINGS, Draw(generator)) for _ in range(n)]


@pytest.mark.parametrize("fitted", FITTED)
def test_which_recipe_is_accurate_is_learned_and_nothing_is_certain(fitted):
    drawn = configs(300)
    x = np.stack([features(config, 0.5 * config.epochs) for config in drawn])
    y = np.array([0.8 if config.training == "free" else 0.2 for config in drawn])
    mean, deviation = fitted(x[:200], y[:200]).predict(x[200:])
    is_free = y[200:] > 0.5
    assert mean[is_free].mean() > 0.6 > 0.35 > mean[~is_free].mean()
    assert (deviation >= accuracy_models.LEAST_DEVIATION).all()


def test_where_the_two_models_differ_neither_is_trusted():
    model = AccuracyModel(np.ones((5, 1)), np.full(5, 0.3), 0)
    model.models = [Fixed(0.2, 0.1), Fixed(0.8, 0.7)]
    mean, deviation = model.predict(np.ones((1, 1)))
    of_one_or_the_other = np.sqrt((0.1**2 + 0.7**2) / 2 + 0.3**2)
    assert mean[0] == pytest.approx(0.5) and deviation[0] == pytest.approx(of_one_or_the_other)


class Fixed:
    def __init__(self, mean, deviation):
        self.mean, self.deviation = mean, deviation

    def predict(self, x):
        return np.full(len(x), self.mean), np.full(len(x), self.deviation)


def test_length_and_noise_are_chosen_on_a_part_and_the_process_is_fitted_to_all(monkeypatch):
    sizes, fit = [], GaussianProcessRegressor.fit
    monkeypatch.setattr(GaussianProcessRegressor, "fit", lambda self, x, y: sizes.append(len(x)) or fit(self, x, y))
    x = np.random.default_rng(0).uniform(size=(250, 2))
    Process(x, x[:, 0])
    assert max(sizes[:-1]) <= accuracy_models.CHOICE_TRIALS and sizes[-1] == 250


def test_the_process_is_least_sure_far_from_what_it_has_seen():
    x = np.linspace(0, 1, 20)[:, None]
    _, (near, far) = Process(x, np.sin(3 * x[:, 0])).predict(np.array([[0.5], [3.0]]))
    assert far > 2 * near


def test_the_process_takes_noise_for_noise():
    """The mean of many noisy trainings is followed, and not each of them."""
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(200, 1))
    y = x[:, 0] + generator.normal(0, 0.1, 200)
    at = np.linspace(0.1, 0.9, 9)[:, None]
    np.testing.assert_allclose(Process(x, y).predict(at)[0], at[:, 0], atol=0.06)


@pytest.mark.parametrize("fitted", FITTED)
def test_trials_that_are_all_alike_are_no_obstacle(fitted):
    mean, deviation = fitted(np.ones((5, 3)), np.full(5, 0.3)).predict(np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]]))
    np.testing.assert_allclose(mean, 0.3)
    assert np.isfinite(deviation).all() and (deviation >= accuracy_models.LEAST_DEVIATION).all()


@pytest.mark.parametrize("fitted", FITTED)
def test_however_many_trials_agree_nothing_is_certain(fitted):
    x = np.linspace(0, 1, 200)[:, None]
    assert fitted(x, 0.1 * x[:, 0]).predict(x)[1].min() >= accuracy_models.LEAST_DEVIATION


def test_only_so_many_trials_are_fitted_and_the_most_accurate_are_among_them(monkeypatch):
    y = np.where(np.arange(200) == 7, 0.9, 0.1)
    kept = most_telling(y, 20)
    assert len(kept) == len(set(kept)) == 20 and 7 in kept
    assert set(range(190, 200)) <= set(kept)
    assert list(most_telling(y, 200)) == list(range(200))


def test_both_models_are_asked_alike():
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(40, 3)), rng.normal(size=(9, 3))
    accuracies = rng.uniform(size=40)
    means, deviations = zip(
        *(model.predict(new) for model in (Forest(x, accuracies, 0), Process(x, accuracies))), strict=True
    )
    mean, deviation = AccuracyModel(x, accuracies, 0).predict(new)
    assert mean == pytest.approx(np.mean(means, 0)) and (deviation >= np.min(deviations, 0)).all()


def test_the_forest_is_least_sure_where_trials_differ():
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(200, 2))
    y = np.where((x[:, 0] > 0.5) & (generator.random(200) < 0.5), 0.9, 0.1)
    deviation = Forest(x, y, 0).predict(x)[1]
    assert deviation[x[:, 0] > 0.6].mean() > 1.5 * deviation[x[:, 0] < 0.4].mean()


@pytest.mark.parametrize("fitted", FITTED[1:])
def test_of_many_trials_the_best_and_the_newest_are_learned_from(fitted, monkeypatch):
    for cap in ("FOREST_TRIALS", "PROCESS_TRIALS"):
        monkeypatch.setattr(accuracy_models, cap, 20)
    kinds, accuracies = np.repeat([0.0, 1.0, 0.0], [20, 10, 10]), np.repeat([0.1, 0.9, 0.3], [20, 10, 10])
    mean, _ = fitted(kinds[:, None], accuracies).predict(np.array([[0.0], [1.0]]))
    assert mean == pytest.approx([0.3, 0.9], abs=0.02)
