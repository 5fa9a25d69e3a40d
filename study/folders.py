"""What a study's name holds already: in its results folder, in a storage, where checkpoints go. Changes none of it."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import optuna

from study import storage
from study.settings import ADDED_LATER, RUN_SETTINGS, StudySettings, normalised
from trainables import stores
from trainables.errors import InputError

MIN_FREE_BYTES = 100_000_000  # a few checkpoints and logs


def stored_settings(settings: StudySettings, given: Mapping[str, object] | None = None) -> dict[str, object] | None:
    """What the study of this name was made with; None where there is no such study yet.

    Args:
        settings: As they would be of a new study.
        given: Options of the command line; one study's images may lie in another `data_dir` than before.

    Raises:
        InputError: If the results folder has no room or holds something else, or the study is another program's.
    """
    check_room(settings)
    folder = settings.folder
    others = [path for path in folder.glob("*") if not path.name.startswith(".")]  # our lock is hidden
    if settings.storage is None and others and not (folder / "study.db").exists():
        raise InputError(f"name: {folder} holds files but no study.db; accepted: a new --name, or an empty folder")
    if settings.storage is not None:
        storage.require_folder(settings.storage)
    study = storage.existing(settings.storage_url, settings.name)
    if study is None and settings.storage is None and (held := storage.names(settings.storage_url)):
        raise InputError(f"name: {folder} holds study {held[0]!r}; accepted: a folder of that name, or a new --name")
    if study is not None and not storage.made_here(study):
        raise InputError(f"name: {settings.name!r} is another program's study in that storage; accepted: a new --name")
    if study is not None:
        storage.require_own_trials(study)
    stored = storage.settings_of(study, given or {})
    if stored is not None and "search" in stored:
        raise InputError(f"name: {settings.name!r} is a confirmation; accepted: the search {stored['search']!r}")
    if settings.storage is not None and others and (stored is None or not made_with(folder, study)):
        raise InputError(f"name: {folder} holds files of another study; accepted: a new --name, or an empty folder")
    return stored


def refuse_another_kind(kind: str, name: object, stored: dict[str, object] | None) -> None:
    """Raises:
    InputError: If `stored` are the settings of a search, and a reproduction is asked for, or the other way round.
    """
    held = kind if stored is None else "reproduction" if "paper" in stored else "search"
    if held != kind:
        raise InputError(f"name: {name!r} holds a {held}; accepted: a new --name")


def require_own_folder(study: optuna.Study, results_dir: str, url: str | None) -> None:
    """Raises:
    InputError: If the study is in the storage at `url`, and its results folder has the files of another.
    """
    folder = Path(results_dir) / study.study_name
    if url is not None and not made_with(folder, study):
        raise InputError(f"name: {folder} holds files of another study; accepted: this study's own --results-dir")


def made_with(folder: Path, study: optuna.Study) -> bool:
    """Whether the folder's study.json, if there is one, tells of a study with these settings and images."""
    stored, images = study.user_attrs["settings"], study.user_attrs.get("images")
    try:
        content = json.loads((folder / "study.json").read_bytes())
        written = content["settings"]
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError):
        return False
    may_differ = RUN_SETTINGS | {"objective"} | ({"data_dir"} if images else set())  # named or decided, it is the same
    known, meant = ADDED_LATER | normalised(written), normalised(stored)
    same = all(known.get(field) == value for field, value in meant.items() if field not in may_differ)
    return same and content.get("images") == images


def check_room(settings: StudySettings) -> None:
    """Raises:
    InputError: If the results folder cannot be written, or its disk is all but full.
    """
    existing = require_writable(settings.folder)
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise InputError(
            f"results_dir: {free // 10**6} MB free at {existing}; accepted: at least {MIN_FREE_BYTES // 10**6} MB"
        )


def require_writable(folder: Path) -> Path:
    """The folder, or the one above it in which it would be made.

    Raises:
        InputError: If that cannot be written.
    """
    folder = folder.absolute()
    for existing in (folder, *folder.parents):
        try:
            existing.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(f"results_dir: {error.strerror}: {str(existing)!r:.200}; accepted: a folder") from None
        break
    if not existing.is_dir():
        raise InputError(f"results_dir: {existing} is a file; accepted: a folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"results_dir: {existing} cannot be written; accepted: a folder that can")
    return existing


def check_storage_path(settings: StudySettings) -> None:
    """Raises:
    InputError: If the place given for checkpoints cannot be written, or a new study would go on from another's.
    """
    place = settings.storage_path
    if place is None:
        return
    accepted = "a folder that all hosts share, or s3://bucket/folder, that can be written"
    if stores.has_key(place):
        raise InputError("storage_path: a URI with a key in it given; accepted: one without; keys: environment or role")
    try:
        stores.require_writable(settings.checkpoints)
        held = sorted(filter(str.isdigit, stores.store(settings.checkpoints).names()))  # by the trial's number
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(f"storage_path: {place!r} given ({cause}); accepted: {accepted}") from None
    if held and storage.existing(settings.storage_url, settings.name) is None:
        raise InputError(
            f"storage_path: {settings.checkpoints} has checkpoints of an earlier study ({', '.join(held[:3])}"
            f"{', …' if len(held) > 3 else ''}); accepted: another name or place, or the folder removed"
        )
