"""Optuna's storage for a study that one process alone writes to: it is read once."""

import copy
import json
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState


class SoleWriter(BaseStorage):
    """A database whose trials are also kept here, so that reading them costs nothing.

    Optuna's own cache fetches every unfinished trial from the database at each read, because another process may
    have changed it, and a proposal reads them at each parameter: what it costs grows with the trials that run. A
    study has one driver, which holds its lock, so nobody else changes trials.

    The database stays the truth: all goes there first, and an error there, after which nobody knows what it has
    taken, makes everything be read again.

    Args:
        database: What others may read meanwhile. What others write to trials is seen by the next driver.
    """

    def __init__(self, database: RDBStorage) -> None:
        self.database = get_storage(database)
        self.trials: dict[int, dict[int, FrozenTrial]] = {}  # by study's id, then trial's
        self.study_of: dict[int, int] = {}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.trials.clear()
            raise

    def _read(self, study_id: int) -> dict[int, FrozenTrial]:
        if study_id not in self.trials:
            trials = self.database.get_all_trials(study_id, deepcopy=False)
            self.trials[study_id] = {trial._trial_id: trial for trial in trials}
            self.study_of |= dict.fromkeys(self.trials[study_id], study_id)
        return self.trials[study_id]

    def _read_one(self, study_id: int, trial_id: int) -> None:
        known = self._read(study_id)
        known[trial_id] = self.database.get_trial(trial_id)
        self.study_of[trial_id] = study_id

    def _change(self, trial_id: int, **changed: dict[str, object]) -> None:
        """Add items to dictionaries of the trial; a copy, for whoever holds the trial as it was."""
        known = self.trials.get(self.study_of.get(trial_id, -1))
        if known is not None:
            known[trial_id] = trial = copy.copy(known[trial_id])
            for name, items in changed.items():
                setattr(trial, name, getattr(trial, name) | items)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        known = self._read(study_id).values()  # in the order of their numbers
        trials = [trial for trial in known if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        known = self.trials.get(self.study_of.get(trial_id, -1), {})
        # Optuna's `Trial` writes into what it gets here.
        return copy.deepcopy(known[trial_id]) if trial_id in known else self.database.get_trial(trial_id)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        with self._writing():
            trial_id = self.database.create_new_trial(study_id, template_trial)
            self._read_one(study_id, trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with self._writing():
            set_now = self.database.set_trial_state_values(trial_id, state, values)
            if trial_id in self.study_of:
                self._read_one(self.study_of[trial_id], trial_id)
        return set_now

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        with self._writing():
            self.database.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        value = distribution.to_external_repr(param_value_internal)
        self._change(trial_id, params={param_name: value}, distributions={param_name: distribution})

    def set_trial_user_attr(self, trial_id: int, key: str, value: object) -> None:
        with self._writing():
            self.database.set_trial_user_attr(trial_id, key, value)
        self._change(trial_id, user_attrs={key: json.loads(json.dumps(value))})

    def set_trial_system_attr(self, trial_id: int, key: str, value: object) -> None:
        with self._writing():
            self.database.set_trial_system_attr(trial_id, key, value)
        self._change(trial_id, system_attrs={key: json.loads(json.dumps(value))})

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        with self._writing():
            self.database.set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._change(trial_id, intermediate_values={step: intermediate_value})

    # Of whole studies nothing is kept.
    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self.database.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self.trials.pop(study_id, None)
        self.database.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: object) -> None:
        self.database.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: object) -> None:
        self.database.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self.database.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self.database.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.database.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, object]:
        return self.database.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, object]:
        return self.database.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        return self.database.get_all_studies()
