"""Syne Tune's MOASHA behind a pipe: one JSON message a line, one answer a line. Needs syne-tune alone."""

import datetime
import json
import sys

from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, loguniform, randint, uniform
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

# search_spaces/full.py without its conditions: what a configuration does not ask for is not read.
SPACE = {
    "epochs": randint(10, 60),
    "training": choice(["natural", "pgd", "fgsm", "free", "trades", "static"]),
    "pgd_steps": randint(2, 10),
    "trades_beta": uniform(1.0, 10.0),
    "free_replays": randint(2, 8),
    "norm": choice(["batchnorm", "robustnorm", "groupnorm", "fixup"]),
    "eval_statistics": choice(["population", "batch"]),
    "lr_batch_ratio": loguniform(1e-4, 5e-3),
    "lr_schedule": choice(["constant", "multistep", "linear", "cosine", "onecycle", "exponential", "accelat"]),
    "momentum": choice([0.0, 0.5, 0.9, 0.95]),
    "nesterov": choice([True, False]),
    "weight_decay": loguniform(1e-5, 5e-3),
    "batch_size_schedule.kind": choice(["constant", "geometric", "linear", "milestones", "plateau"]),
    "batch_size_schedule.size": choice([8, 16, 32, 64, 128, 256, 512]),
    "lr_follows_batch": choice([True, False]),
    "batch_size_schedule.first": choice([8, 16, 32, 64]),
    "batch_size_schedule.last": choice([64, 128, 256, 512]),
    "batch_size_schedule.factor": choice([2, 4]),
    "batch_size_schedule.patience": randint(1, 5),
}


def main() -> None:
    options = json.loads(sys.argv[1])
    import numpy as np

    np.random.seed(options["seed"])  # the scheduler draws from numpy's global generator
    scheduler = MOASHA(
        config_space=SPACE,
        metrics=["error", "seconds"],
        time_attr="epoch",
        max_t=30,
        grace_period=options["grace_period"],
        reduction_factor=options["reduction_factor"],
        random_seed=options["seed"],
    )
    trials = {}
    for line in sys.stdin:
        what, number, *more = json.loads(line)
        answer: object = None
        if what == "suggest":
            config = scheduler.suggest().config
            trials[number] = Trial(number, config, datetime.datetime.now())
            scheduler.on_trial_add(trials[number])
            answer = config
        elif what == "result":
            answer = scheduler.on_trial_result(trials[number], more[0])
        elif what == "complete":
            scheduler.on_trial_complete(trials.pop(number), more[0])
        else:
            scheduler.on_trial_remove(trials.pop(number))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
