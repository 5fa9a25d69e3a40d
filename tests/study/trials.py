"""Trials of a search as a study stores them, without a search."""

import json

import numpy as np
import optuna
from optuna.trial import TrialState
from safetensors.numpy import save

CONFIG = {"norm": "fixup", "training": "natural", "batch_size_schedule": {"kind": "constant", "size": 8}}
CONFIG |= {"epochs": 3, "lr_batch_ratio": 1e-3}


def weights(number, config=CONFIG):
    return save({"number": np.array([number])}, {"config": json.dumps(config)})


def add(study, adversarial=None, seconds=None, label=None, state=TrialState.COMPLETE, config=CONFIG):
    attrs = {"config": config, "clean_accuracy": 0.9, "n_examples": 100, "reason": "finished", "curve": []}
    attrs |= {"measured_seconds": seconds} | ({"label": label} if label else {})
    values = [adversarial, seconds] if state is TrialState.COMPLETE else None
    study.add_trial(optuna.trial.create_trial(state=state, values=values, user_attrs=attrs))
