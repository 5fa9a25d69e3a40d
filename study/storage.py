"""URL in, Optuna storage out."""

import shlex
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from study.settings import StudySettings, sqlite_url
from trainables.errors import InputError, nearest

OBJECTIVES = ["adversarial_accuracy", "train_seconds"]
DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

SQLITE_TIMEOUT = 60  # seconds a writer waits for a locked file; the default of 5 s loses results
# Seconds (the last: milliseconds) after which PostgreSQL's client gives up a server that the network has lost: its own
# default is a quarter of an hour or more, in which not even Ctrl-C reaches the process.
POSTGRESQL = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4}
POSTGRESQL |= {"tcp_user_timeout": 30_000}
LIBPQ = ("psycopg2", "psycopg")  # the drivers that know these


def has_password(url: str) -> bool:
    """Whether the URL holds one, as its password or in its query."""
    parsed = make_url(url)
    return bool(parsed.password) or any(map(_may_be_secret, parsed.query))


def _may_be_secret(key: str) -> bool:
    """Of a URL's query: drivers call a password `password`, `passwd` or `pwd`, or take it inside an ODBC string."""
    return any(part in key.lower() for part in ("passw", "pwd", "secret", "token", "odbc_connect"))


def redacted(url: str) -> str:
    """The URL without its passwords, for files and messages."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "(not a URL)"
    hidden = {key: "***" for key in parsed.query if _may_be_secret(key)}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)


def location(results_dir: str, url: str | None) -> str:
    """Options that lead a command to a study; a password is left out."""
    given = [] if results_dir == StudySettings.model_fields["results_dir"].default else ["--results-dir", results_dir]
    given += ["--storage", redacted(url)] if url else []
    return "".join(f" {shlex.quote(part)}" for part in given)


def from_url(url: str) -> RDBStorage:
    """Raises:
    InputError: If the URL is malformed, its driver is missing, or nothing answers there.
    """
    try:
        connect_args = _patience(url)
        for wait in (0.1, 0.2, 0.4, 0.8, 1.6):
            try:
                return RDBStorage(url, engine_kwargs={"connect_args": connect_args, "pool_pre_ping": True})
            except SQLAlchemyError as error:
                if not (isinstance(error, IntegrityError) or "already exists" in cause(error)):
                    raise
                time.sleep(wait)  # another process is making the same tables
        raise RuntimeError("its tables are being made by another process, again and again")
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        raise InputError(
            f"storage: {redacted(url)} given ({cause(error)}); accepted: a database URL that answers, "
            "e.g. sqlite:///study.db or postgresql://user@host/name"
        ) from None


def _patience(url: str) -> dict[str, int]:
    """How long the database's driver waits; for PostgreSQL, what the URL itself says holds."""
    if _sqlite_file(url):
        return {"timeout": SQLITE_TIMEOUT}
    parsed = make_url(url)
    known = POSTGRESQL if parsed.get_backend_name() == "postgresql" and parsed.get_driver_name() in LIBPQ else {}
    return {name: value for name, value in known.items() if name not in parsed.query}


def cause(error: Exception) -> str:
    """What the database said, in one line; Optuna wraps it, and so does SQLAlchemy."""
    root = error.__cause__ or error
    return str(getattr(root, "orig", None) or root).strip().splitlines()[0]


TOO_LITTLE_GAIN = "too little gain"  # how a study ends that goes on until a gain


def _sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for other databases and for what is no URL."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return None
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(parsed.database.removeprefix("file:"))


def require_folder(url: str) -> None:
    """Raises:
    InputError: If the URL is of a SQLite file in a folder that does not exist, or of none at all.
    """
    file = _sqlite_file(url)
    if file is None and url.startswith("sqlite"):
        raise InputError(f"storage: {url} given, which is gone when the study ends; accepted: a file, or a database")
    if file is not None and not file.parent.is_dir():
        raise InputError(f"storage: {redacted(url)} given, no such folder: {file.parent}; accepted: one that exists")


def open_study(storage: BaseStorage, name: str, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """The study `name`, made where it does not exist."""
    study = optuna.create_study(
        storage=storage, study_name=name, directions=DIRECTIONS, sampler=sampler, load_if_exists=True
    )
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        study.set_metric_names(OBJECTIVES)
    return study


def existing(url: str, name: str) -> optuna.Study | None:
    """The study `name`, or None; makes no SQLite file where there is none."""
    file = _sqlite_file(url)
    if file is not None and not file.exists():
        return None
    try:
        return optuna.load_study(storage=from_url(url), study_name=name)
    except KeyError:
        return None


def named(name: str, results_dir: str, url: str | None, field: str = "name") -> optuna.Study:
    """The search `name`, from the storage at `url`, or else from its SQLite file in `results_dir`.

    Raises:
        InputError: If there is none, with the nearest name; or if it was not made by `study.pareto`, but by
            `study.confirm`, `study.reproduce` or another program.
    """
    file, found = Path(results_dir) / name / "study.db", True
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        found = False
    except OSError as error:
        raise InputError(f"{field}: {name!r:.60} given ({error.strerror}); accepted: a study's name") from None
    if url is None and not found:
        made = sorted(path.parent.name for path in Path(results_dir).glob("*/study.db"))
        raise InputError(
            f"{field}: {nearest(name, made)}" if made else f"{field}: {name!r}; accepted: none yet in {results_dir}"
        )
    location = url or sqlite_url(file)
    study = existing(location, name)
    if study is None:
        made = names(location)
        if url is None and made:
            raise InputError(f"{field}: {file.parent} holds study {made[0]!r}; accepted: a folder of that name")
        raise InputError(f"{field}: {nearest(name, made)}" if made else f"{field}: {name!r}; accepted: none yet there")
    settings = study.user_attrs.get("settings", {"paper": ""})
    if "search" in settings:
        raise InputError(f"{field}: {name!r} is a confirmation; accepted: the search {settings['search']!r}")
    if "paper" in settings or not made_here(study):
        raise InputError(f"{field}: {name!r} was not made by study.pareto; accepted: a study that was")
    require_own_trials(study, field)
    return study


def settings_of(study: optuna.Study | None, given: Mapping[str, object]) -> dict[str, object] | None:
    """What the study was made with; None where there is none yet.

    Where its images are known by their fingerprints, `data_dir` is but a place: the one that is `given` now counts. An
    `objective` that nobody named was decided when the study began.
    """
    stored = None if study is None else study.user_attrs.get("settings")
    if stored is None:
        return None
    place = {"data_dir": given["data_dir"]} if "images" in study.user_attrs and "data_dir" in given else {}
    decided = study.user_attrs.get("objective", stored.get("objective"))
    return stored | place | ({"objective": decided} if "objective" in given else {})


def made_here(study: optuna.Study) -> bool:
    """Whether a command of this project made it, or has only begun to, and not another program."""
    return study.directions == DIRECTIONS and ("settings" in study.user_attrs or not study.get_trials(deepcopy=False))


def require_own_trials(study: optuna.Study, field: str = "name") -> None:
    """Raises:
    InputError: If another program has told the study of a complete trial, which has nothing of what ours record.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    foreign = next((trial.number for trial in complete if "config" not in trial.user_attrs), None)
    if foreign is not None:
        raise InputError(
            f"{field}: {study.study_name!r} has a complete trial, #{foreign}, of another program; "
            "accepted: trials that ran here, which others may enqueue"
        )


def names(url: str) -> list[str]:
    """Of the studies in a storage; makes no SQLite file where there is none."""
    file = _sqlite_file(url)
    return [] if file is not None and not file.exists() else optuna.get_all_study_names(from_url(url))


def is_unfinished(study: optuna.Study) -> bool:
    """Whether fewer trials have ended than were asked for, and not because a further one promised too little."""
    asked = study.user_attrs.get("settings", {}).get("trials", 0)
    return n_finished(study) < asked and study.user_attrs.get("ending") != TOO_LITTLE_GAIN


def n_finished(study: optuna.Study) -> int:
    """Trials that have ended, well or not."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def count_finished(url: str, name: str) -> int:
    study = existing(url, name)
    return 0 if study is None else n_finished(study)
