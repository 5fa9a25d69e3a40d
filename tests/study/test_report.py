import re

import optuna
import pytest
from optuna.trial import TrialState

from study import report, storage
from tests.study.test_results import add

SETTINGS = {"name": "mine", "dataset": "digits", "eps": 0.1, "attack_steps": 10}


@pytest.fixture
def results(tmp_path):
    """Results folder of one study with three complete trials and a failed one."""
    (tmp_path / "mine").mkdir()
    study = storage.open_study(storage.from_url(f"sqlite:///{tmp_path / 'mine' / 'study.db'}"), "mine")
    study.set_user_attr("settings", SETTINGS)
    add(study, 0.5, 10.0, label="Fixup <8>")
    add(study, 0.3, 5.0)
    add(study, 0.4, 12.0)
    add(study, state=TrialState.FAIL)
    return tmp_path


def test_the_report_is_one_page_that_needs_no_network(results, capsys):
    assert report.main(["mine", "--results-dir", str(results)]) == 0
    page = (results / "mine" / "report.html").read_text()
    assert capsys.readouterr().out.strip() == str(results / "mine" / "report.html")
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)
    assert "Fixup &lt;8&gt;" in page and "3 complete, 0 stopped early, 1 failed" in page
    assert "eps 0.1 (25.5" in page


def test_pictures_are_written_for_the_screen_and_for_paper(results):
    report.main(["mine", "--results-dir", str(results)])
    assert (results / "mine" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (results / "mine" / "front.svg").read_text()


def test_a_study_without_a_complete_trial_has_a_report_too(tmp_path):
    study = optuna.create_study(directions=storage.DIRECTIONS)
    study.set_user_attr("settings", SETTINGS)
    report.write(study, tmp_path)
    assert (tmp_path / "report.html").exists() and (tmp_path / "front.png").exists()


def test_an_unknown_study_is_answered_with_the_nearest(results, capsys):
    assert report.main(["mien", "--results-dir", str(results)]) == 2
    assert capsys.readouterr().err == "error: name: 'mien' (did you mean 'mine'?); accepted: mine\n"


def test_where_no_study_is_that_is_said(tmp_path, capsys):
    assert report.main(["mine", "--results-dir", str(tmp_path)]) == 2
    assert "accepted: none yet" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
