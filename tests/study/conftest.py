"""What several files of tests begin with."""

import pytest
from optuna.trial import TrialState

from study import confirm, confirmation, members
from tests.study.confirmations import search, trained


@pytest.fixture
def made(tmp_path):
    """A confirmation with two seeds of trials 1 and 2, one of which failed."""
    searched = search(tmp_path)
    settings = confirm.resolve(searched, {"results_dir": str(tmp_path), "seeds": 2})
    settings.folder.mkdir()
    chosen = members.members_numbered(searched.trials, [1, 2])
    settings = settings.model_copy(update={"trials": confirmation.n_trials(settings, chosen)})
    study = confirmation.prepare(settings, chosen)
    masks = {
        (1, 0): [1, 1, 1, 0, 0, 1, 0, 1, 1],
        (2, 0): [0, 0, 1, 0, 0, 1, 0, 1, 0],
        (1, 1): [1, 0, 1, 0, 0, 0, 0, 1, 1],
    }
    first, second = members.fresh_seeds(3, 2)
    trained(study, settings, 1, first, masks[1, 0], 12.0)
    trained(study, settings, 2, first, masks[2, 0], 6.0, reason="finished; catastrophic overfitting in epoch 3: …")
    trained(study, settings, 1, second, masks[1, 1], 14.0)
    trial = study.ask()
    study.tell(trial, state=TrialState.FAIL)
    return searched, study, settings, masks
