import ast
import warnings
from typing import get_args

import optuna
import pytest

from study import spaces
from study.settings import StudySettings, from_layers
from trainables.config import BATCH_KINDS, LrSchedule, Norm, Training, TrialConfig, trial_config

N_DRAWS = 200
N_TRAIN = {"digits": 1200, "cifar10": 40_000}  # training images left once validation is split off


@pytest.fixture(scope="module", params=spaces.names())
def space(request):
    return spaces.load(request.param)


def settings_of(space) -> StudySettings:
    return from_layers({"name": "a-study"}, None, space.defaults)


def ask(study, space):
    """One trial's configuration and what was suggested for it; a value out of range is an error."""
    trial = study.ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = spaces.configure(space, settings_of(space), trial)
    return config, trial


def random_study():
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


@pytest.fixture(scope="module")
def drawn(space):
    study = random_study()
    return [ask(study, space) for _ in range(N_DRAWS)]


class TestEverySpace:
    def test_every_draw_is_a_valid_configuration(self, drawn):
        assert len(drawn) == N_DRAWS
        assert all(isinstance(config, TrialConfig) for config, _ in drawn)

    def test_what_is_suggested_is_what_is_trained(self, drawn):
        for config, trial in drawn:
            trained = config.model_dump()
            for name, value in trial.params.items():
                *parents, leaf = name.split(".")
                fields = trained
                for parent in parents:
                    fields = fields[parent]
                assert fields[leaf] == value

    def test_same_seed_same_draws(self, space, drawn):
        study = random_study()
        assert [ask(study, space)[0] for _ in range(10)] == [config for config, _ in drawn[:10]]

    def test_a_name_has_one_distribution(self, drawn):
        """So that samplers learn from trials of other branches, and storages accept them."""
        seen = {}
        for _, trial in drawn:
            for name, distribution in trial.distributions.items():
                assert seen.setdefault(name, distribution) == distribution

    def test_each_published_configuration_is_exactly_what_the_space_suggests(self, space):
        study = random_study()
        for label, params in space.baselines.items():
            study.enqueue_trial(params)
            _, trial = ask(study, space)
            assert trial.params == params, label

    def test_a_study_may_start_on_it(self, space):
        settings = settings_of(space)
        spaces.try_out(space, settings, N_TRAIN[settings.dataset])

    def test_defaults_are_settings_of_a_study(self, space):
        settings = settings_of(space)
        assert {"dataset", "depth", "eps", "attack_steps", "eval_examples", "trials"} <= set(space.defaults)
        assert settings.trials > len(space.baselines), "nothing left to search"

    def test_labels_are_unique_and_so_are_their_configurations(self, space):
        assert space.baselines
        module = ast.parse(space.path.read_text())
        assigned = [node for node in module.body if isinstance(node, ast.Assign)]
        (table,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "BASELINES")
        assert len(table.keys) == len(space.baselines), "a label stands twice"
        configs = list(space.baselines.values())
        assert all(first not in configs[:i] for i, first in enumerate(configs))

    def test_a_docstring_says_what_it_is_for(self, space):
        assert ast.get_docstring(ast.parse(space.path.read_text()))
        assert space.function.__doc__

    def test_it_imports_nothing_but_optuna(self, space):
        nodes = list(ast.walk(ast.parse(space.path.read_text())))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert imported == {"optuna"}
        assert not any(isinstance(node, ast.ImportFrom) for node in nodes)


def draws(name):
    study, space = random_study(), spaces.load(name)
    return [ask(study, space)[0] for _ in range(N_DRAWS)]


def test_full_reaches_every_variant_of_every_family():
    configs = draws("full")
    assert {config.norm for config in configs} == set(get_args(Norm))
    assert {config.training for config in configs} == set(get_args(Training))
    assert {config.lr_schedule for config in configs} == set(get_args(LrSchedule))
    assert {config.batch_size_schedule.kind for config in configs} == set(BATCH_KINDS)
    assert {config.nesterov for config in configs} == {True, False}
    assert {(config.norm, config.eval_statistics) for config in configs} >= {
        (norm, statistics) for norm in ("batchnorm", "robustnorm") for statistics in ("population", "batch")
    }


def test_spaces_of_natural_training_train_naturally():
    for name in ("adaptive_batch", "lr_batch_ratio", "normalization", "quickstart"):
        assert {config.training for config in draws(name)} == {"natural"}


def test_adversarial_training_trains_within_the_radius_it_is_attacked_with():
    configs = draws("adversarial_training")
    assert {config.training for config in configs} == {"pgd", "fgsm", "free", "trades"}
    assert {config.eps for config in configs} == {8 / 255}


def test_published_ratios_and_rates_are_constant_over_batch_sizes():
    baselines = spaces.load("lr_batch_ratio").baselines
    rates, ratios = set(), set()
    for label, params in baselines.items():
        config = trial_config({"batch_size_schedule.kind": "constant", **params})
        if label.startswith("fixed LR"):
            rates.add(round(config.lr_batch_ratio * config.batch_size_schedule.size, 12))
        else:
            ratios.add(config.lr_batch_ratio)
    assert rates == {0.1} and ratios == {0.1 / 128}
