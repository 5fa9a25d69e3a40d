"""Whether a study that goes on, is confirmed or trained from, still sees the images that it was made with.

`data_dir` is a place that may change, between machines and working directories; the images' own fingerprint is what
stays. A study without one, of an earlier version, keeps to its `data_dir`.
"""

from collections.abc import Callable

import optuna

from study import storage
from study.settings import StudySettings
from trainables import data
from trainables.data import Dataset
from trainables.errors import InputError
from trainables.fingerprints import Fingerprints, fingerprints


def load(settings: StudySettings, searched: optuna.Study | None = None) -> tuple[Dataset, Fingerprints]:
    """The study's data set, and the fingerprints of what the study sees of it.

    Args:
        settings: Of the study, which need not exist yet.
        searched: The study that it confirms.

    Raises:
        InputError: If the images cannot be used, or are others than those of either study.
    """
    dataset = data.configured(settings.data)
    found = fingerprints(dataset, settings.evaluation.split)
    for study in (searched, storage.existing(settings.storage_url, settings.name)):
        known = {} if study is None else study.user_attrs.get("images", {})
        for part, fingerprint in known.items():
            if found[part] != fingerprint:
                raise InputError(
                    f"data_dir: {settings.data_dir!r} given, whose {part} images are not those of study "
                    f"{study.study_name!r}; accepted: a folder with the same images, or a new study"
                )
    return dataset, found


def kept(found: Fingerprints, prepare: Callable[[], optuna.Study]) -> optuna.Study:
    """What `prepare` opens; a study that it makes keeps the fingerprints."""
    study = prepare()
    if "images" not in study.user_attrs and not any(t.state.is_finished() for t in study.get_trials(deepcopy=False)):
        study.set_user_attr("images", found)
    return study
