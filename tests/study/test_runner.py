import logging
from contextlib import contextmanager, nullcontext

import pytest

from study import runner
from study.settings import StudySettings


@pytest.mark.parametrize(
    "given,asked",
    [
        ({"gpus_per_trial": 0.5}, 1),
        ({"gpus_per_trial": 1}, 0),
        ({}, 0),
        ({"gpus_per_trial": 0.5, "address": "auto"}, 0),
    ],
)
def test_trials_that_share_a_gpu_of_this_machine_have_mps_before_ray_starts(given, asked, monkeypatch, caplog):
    events = []

    @contextmanager
    def mps():
        events.append("mps")
        yield "not there"

    def ray(settings, local):
        events.append("ray")
        return nullcontext()

    monkeypatch.setattr(runner, "mps", mps)
    monkeypatch.setattr(runner, "started_ray", ray)
    monkeypatch.setattr(runner, "sufficient_resources", lambda settings: {"GPU": 1.0})
    with caplog.at_level(logging.WARNING), runner.cluster(StudySettings(name="a", **given)) as resources:
        assert resources == {"GPU": 1.0}
    assert events == ["mps"] * asked + ["ray"]
    assert caplog.text.count("without MPS: not there") == asked
