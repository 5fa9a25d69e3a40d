"""Which parameters decided the objectives, and how much of it may be chance."""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial

from study.results import is_complete
from study.storage import DIRECTIONS

BEST_SHARE = 0.25  # importance is for coming into the best quarter
N_FEWEST = 12  # complete trials: the best quarter is three
N_SHUFFLES = 10


@dataclass(frozen=True)
class Importances:
    """Share of importance per parameter, for each objective, and the largest share in shuffled trials."""

    n_trials: int
    accuracy: dict[str, float]
    accuracy_by_chance: dict[str, float]
    seconds: dict[str, float]
    seconds_by_chance: dict[str, float]


def evaluate(trials: Sequence[FrozenTrial]) -> Importances | None:
    """None where fewer than `N_FEWEST` trials are complete, or nothing varied.

    PED-ANOVA, since it knows conditional parameters and takes a fraction of a second for 2,000 trials, where fANOVA
    takes minutes. What it says of trials whose objective values were dealt out anew at random is its noise.

    Source: Watanabe, Bansal, Hutter 2023, arXiv:2304.10255.
    """
    complete = [trial for trial in trials if is_complete(trial)]
    if len(complete) < N_FEWEST or not any(trial.params for trial in complete):
        return None
    study = optuna.create_study(directions=DIRECTIONS)  # in memory: a database would be asked anew for each shuffle
    study.add_trials(
        optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, values=trial.values)
        for trial in complete
    )
    accuracy, accuracy_by_chance = _of([-trial.values[0] for trial in complete], study)
    seconds, seconds_by_chance = _of([trial.values[1] for trial in complete], study)
    return Importances(len(complete), accuracy, accuracy_by_chance, seconds, seconds_by_chance)


def _of(losses: Sequence[float], study: optuna.Study) -> tuple[dict[str, float], dict[str, float]]:
    """Shares for `losses`, one for each trial of the study, low ones good; and the largest ones by chance."""
    evaluator, rng = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE), random.Random(0)

    def divergences(dealt: Sequence[float]) -> dict[str, float]:
        with warnings.catch_warnings(action="ignore"):  # that it takes low values to be good, which they are
            return evaluator.evaluate(study, target=lambda trial: dealt[trial.number])

    found = divergences(losses)
    shuffles = [divergences(rng.sample(losses, len(losses))) for _ in range(N_SHUFFLES)]
    total = sum(found.values()) or 1.0
    by_chance = {name: max(shuffle[name] for shuffle in shuffles) / total for name in found}
    return {name: value / total for name, value in found.items()}, by_chance
