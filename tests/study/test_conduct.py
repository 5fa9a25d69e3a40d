from contextlib import contextmanager

import pytest

from study import conduct, runner
from study.settings import StudySettings
from trainables.errors import InputError


@pytest.fixture
def settings(tmp_path):
    return StudySettings(space="quickstart", name="mine", results_dir=str(tmp_path))


def test_a_study_that_another_process_begins_while_ray_starts_is_left_to_it(settings, monkeypatch):
    @contextmanager
    def cluster_that_takes_its_time(settings):
        settings.folder.mkdir()
        yield {"CPU": 2.0}

    monkeypatch.setattr(runner, "cluster", cluster_that_takes_its_time)
    with pytest.raises(InputError, match="^name: 'mine' given, which another process has begun meanwhile; accepted: "):
        conduct.carry_out(settings, pytest.fail, pytest.fail, pytest.fail)
    assert list(settings.folder.iterdir()) == []


def test_the_command_to_go_on_names_what_is_not_stored_with_the_study(settings):
    elsewhere = settings.model_copy(update={"address": "auto", "storage": "postgresql://me@host/db"})
    expected = f"python -m study.pareto --results-dir {settings.results_dir} --address auto --storage URL"
    assert conduct.command_line(elsewhere, "pareto") == expected
    assert "--address" not in conduct.command_line(elsewhere, "recommend", "mine")
    assert conduct.command_line(StudySettings(space="quickstart", name="mine"), "pareto") == "python -m study.pareto"
