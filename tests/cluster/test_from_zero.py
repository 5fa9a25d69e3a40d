"""A study on a cluster that has no worker yet, with Ray's own autoscaler and pretended nodes on one host."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.cluster.hosts import ROOT, Host, Network, missing
from tests.faults.campaign import SPACE

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

# Arguments: those of the search. Prints the workers that Ray had before, at most during, and after the study.
SCRIPT = """
import json, sys, time
import ray
from ray.cluster_utils import AutoscalingCluster
from study import pareto

def workers():
    return sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes())

worker = {"resources": {"CPU": 1, "object_store_memory": 80_000_000}, "node_config": {}}
cluster = AutoscalingCluster(
    head_resources={"CPU": 0, "object_store_memory": 80_000_000},
    worker_node_types={"worker": worker | {"min_workers": 0, "max_workers": 2}},
    idle_timeout_minutes=0.1,
    autoscaler_v2=True,
)
cluster.start()
counts = {}
ray.init("auto")
counts["before"] = workers()
ray.shutdown()
status = pareto.main(sys.argv[1:])
ray.init("auto")
counts["at the end"] = workers()
end = time.monotonic() + 240
while workers() and time.monotonic() < end:
    time.sleep(1)
counts["idle"] = workers()
print(json.dumps(counts))
sys.exit(status)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host of its own, since an autoscaler ends whatever Ray it finds."""
    if reason := missing():
        pytest.skip(f"no hosts can be made: {reason}")
    network = Network(tmp_path / "net")
    try:
        yield network.add("alone")
    finally:
        network.close()


def test_workers_are_started_for_a_study_and_removed_when_idle(host):
    space = host.network.folder / "space.py"  # what else lies below /tmp the host does not see
    space.write_text(SPACE)
    options = ["--name", "zero", "--trials", "4", "--results-dir", host.network.folder / "results", "--address", "auto"]
    run = host.run(sys.executable, "-c", SCRIPT, space, *options, cwd=ROOT, timeout=800)
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    counts = json.loads(run.stdout.splitlines()[-1])
    assert counts["before"] == 0 and counts["at the end"] >= 1 and counts["idle"] == 0
    trials = pd.read_csv(host.network.folder / "results" / "zero" / "trials.csv")
    assert list(trials.state) == ["COMPLETE"] * 4
