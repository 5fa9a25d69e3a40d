"""Searches and confirmations as studies store them, of trainings that never ran."""

import sqlite3

import numpy as np
import torch
from optuna.trial import TrialState, create_trial

from study import storage
from trainables.config import ConstantBatch, TrialConfig
from trainables.strong import pack

SETTINGS = {"name": "mine", "space": "quickstart", "trials": 4, "dataset": "digits", "data_dir": None, "depth": 8}
SETTINGS |= {"eps": 0.1, "attack_steps": 2, "eval_examples": 60, "seed": 3, "cpus_per_trial": 1.0}

HONEST = {"batch_dependence.n": 256.0, "batch_dependence.changed.any": 0.0, "overfitted": False}
HONEST |= {"strong.n": 50.0, "strong.pgd": 0.5, "strong.converged": 0.49}
HONEST |= {"strong.autoattack": 0.47, "strong.square_alone": 0.0}
HONEST |= {"strong.eps.0.05": 0.8, "strong.eps.0.1": 0.5, "strong.eps.0.2": 0.1, "strong.eps.0.5": 0.0}
HONEST |= {"strong.commonest": 0.14}


def config(seed=0, batch=128, ratio=1e-9):
    # A rate this small leaves the network as it was made: next to nothing is right, so attacks end at once.
    return TrialConfig(
        depth=8, epochs=1, seed=seed, batch_size_schedule=ConstantBatch(size=batch), lr_batch_ratio=ratio
    )


def add(study, accuracy, seconds, label=None, state=TrialState.COMPLETE, batch=128):
    number = len(study.trials)
    attrs = {"config": config(3 + number, batch).model_dump(mode="json"), "clean_accuracy": 0.9, "n_examples": 60}
    attrs |= {"reason": "finished", "curve": []} | ({"label": label} if label else {})
    values = [accuracy, seconds] if state is TrialState.COMPLETE else None
    study.add_trial(create_trial(state=state, values=values, user_attrs=attrs))


def search(folder, name="mine"):
    """A search of four trials: two on the front, one published and dominated, one failed."""
    (folder / name).mkdir()
    study = storage.open_study(storage.from_url(f"sqlite:///{folder / name / 'study.db'}"), name)
    study.set_user_attr("settings", SETTINGS | {"name": name})
    add(study, 0.4, 20.0, "BatchNorm 64", batch=64)
    add(study, 0.5, 10.0)
    add(study, 0.3, 5.0, batch=32)
    add(study, None, None, state=TrialState.FAIL)
    return study


def trained(study, settings, number, seed, mask, seconds, **attrs):
    """Ends the enqueued training of this member and seed."""
    trial = study.ask()
    assert (trial.user_attrs["member"], trial.user_attrs["config"]["seed"]) == (number, seed)
    probes = {name: value for name, value in HONEST.items() if name != "overfitted"}
    probes |= {"strong.robust": pack(torch.tensor(mask, dtype=torch.bool)), "strong.n": 4.0}
    found = {"probes": probes, "reason": "finished", "curve": []}
    found |= {"clean_accuracy": 0.9, "n_examples": len(mask)} | attrs
    for name, value in found.items():
        trial.set_user_attr(name, value)
    study.tell(trial, [float(np.mean(mask)), seconds])


def no_front(folder):
    (folder / "mine").mkdir()
    study = storage.open_study(storage.from_url(f"sqlite:///{folder / 'mine' / 'study.db'}"), "mine")
    study.set_user_attr("settings", SETTINGS)
    add(study, None, None, state=TrialState.FAIL)


def another_version(folder):
    search(folder)
    with sqlite3.connect(folder / "mine" / "study.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
        database.execute("UPDATE version_info SET schema_version = 3")
