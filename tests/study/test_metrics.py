import time
from urllib.request import ProxyHandler, build_opener

import optuna
import pytest
import ray
from optuna.trial import TrialState

from study.metrics import StudyMetrics, addresses
from study.storage import DIRECTIONS
from tests.study.trials import add


@pytest.fixture
def local_ray(monkeypatch):
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(address="local", num_cpus=1, include_dashboard=True, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.cluster
@pytest.mark.slow
def test_rays_prometheus_endpoint_serves_the_state_of_the_study(local_ray):
    study = optuna.create_study(directions=DIRECTIONS)
    add(study, 0.5, 10.0)
    add(study, 0.3, 5.0)
    add(study, 0.2, 8.0)
    add(study, state=TrialState.FAIL)
    metrics, where = StudyMetrics("mine"), addresses()
    assert where["dashboard"].startswith("http://127.0.0.1:")
    expected = {
        'ray_study_trials{state="COMPLETE"}': 3,
        'ray_study_trials{state="FAIL"}': 1,
        'ray_study_trials{state="PRUNED"}': 0,
        "ray_study_front_size": 2,
        "ray_study_hypervolume": 0.3 * (10 - 5),
        "ray_study_best_adversarial_accuracy": 0.5,
    }
    deadline, served = time.monotonic() + 120, {}
    while not expected.keys() <= served.keys():
        assert time.monotonic() < deadline, served
        metrics.update(study.trials)
        time.sleep(1)
        served = scrape(where["metrics"])
    assert {name: served[name] for name in expected} == pytest.approx(expected)


def scrape(url):
    """The study's samples, by name and state."""
    samples = {}
    for line in build_opener(ProxyHandler({})).open(url, timeout=30).read().decode().splitlines():
        if line.startswith("ray_study_") and 'study="mine"' in line:
            name, value = line.partition("{")[0], float(line.rpartition(" ")[2])
            state = line.partition('state="')[2].partition('"')[0]
            samples[f'{name}{{state="{state}"}}' if state else name] = value
    return samples
