"""A short campaign of kills."""

import pytest

from tests.faults import campaign

N_KILLS = 20


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_after_kills_at_random_moments_no_trial_is_lost_doubled_or_faked(tmp_path):
    report = campaign.run(0, N_KILLS, tmp_path)  # the invariants are asserted after each study
    assert sum(report.kills.values()) == N_KILLS
    assert report.total("complete") == report.total("trials") == len(report.accounts) * campaign.N_TRIALS
    assert report.total("epochs_redone") <= report.total("interruptions")
