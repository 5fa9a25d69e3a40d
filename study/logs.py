"""What TensorBoard shows of a trial."""

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.logger import TBXLoggerCallback
from ray.tune.result import TRAINING_ITERATION

from study.search import CURVE


class CurvesAndHparams(TBXLoggerCallback):
    """Each trial's curve over epochs, and its configuration as hyperparameters.

    Tune's own logger adds everything that workers are told and report, in which the hyperparameters drown, and begins
    a trial that was interrupted at its first step again.
    """

    def log_trial_start(self, trial: TuneTrial) -> None:
        trial.evaluated_params = trial.config["trial"]
        super().log_trial_start(trial)

    def log_trial_result(self, iteration: int, trial: TuneTrial, result: dict[str, object]) -> None:
        if "epoch" in result:
            row = {name: result[name] for name in CURVE if name != "epoch" and name in result}
            super().log_trial_result(iteration, trial, {TRAINING_ITERATION: result["epoch"], **row})
