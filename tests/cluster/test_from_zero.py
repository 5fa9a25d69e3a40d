"""A study on a cluster that has no worker yet, with Ray's own autoscaler and pretended nodes on one host."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.cluster.hosts import ROOT, Host, Network, missing
from tests.cluster.rayup import RAY
from tests.faults.campaign import space_file

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.hosts, pytest.mark.timeout(900)]

# As `ray up` leaves it on the head; the nodes are processes on the same host.
CONFIG = {
    "cluster_name": "pretended",
    "max_workers": 2,
    "upscaling_speed": 100,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
    },
    **dict.fromkeys(["auth", "docker", "file_mounts"], {}),
    **dict.fromkeys(["cluster_synced_files", "initialization_commands", "setup_commands"], []),
    **dict.fromkeys([f"{kind}_{what}_commands" for kind in ("head", "worker") for what in ("setup", "start_ray")], []),
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 80_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
}
HEAD = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}

# Arguments: a file, then those of the search. Writes into the file how many workers there were before, at the end, and
# when they were idle: standard output is shared with Ray, which tells what its autoscaler does there.
SCRIPT = """
import json, sys, time
from pathlib import Path

import ray
from study import pareto

def workers():
    return sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes())

counts = {}
ray.init("auto")
counts["before"] = workers()
ray.shutdown()
status = pareto.main(sys.argv[2:])
ray.init("auto")
counts["at the end"] = workers()
end = time.monotonic() + 240
while workers() and time.monotonic() < end:
    time.sleep(1)
counts["idle"] = workers()
Path(sys.argv[1]).write_text(json.dumps(counts))
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
    space.write_text(space_file())
    (host.home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(CONFIG))
    start = ["--head", "--num-cpus=0", "--object-store-memory=80000000"]
    config = host.network.home / "ray_bootstrap_config.yaml"  # as the host sees it
    started = host.run(RAY, "start", *start, f"--autoscaling-config={config}", **HEAD)
    assert started.returncode == 0, (started.stdout + started.stderr)[-3000:]
    options = ["--name", "zero", "--trials", "4", "--results-dir", host.network.folder / "results", "--address", "auto"]
    counted = host.network.folder / "counts.json"
    run = host.run(sys.executable, "-c", SCRIPT, counted, space, *options, cwd=ROOT, timeout=500)
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    counts = json.loads(counted.read_text())
    assert counts["before"] == 0 and counts["at the end"] >= 1 and counts["idle"] == 0
    trials = pd.read_csv(host.network.folder / "results" / "zero" / "trials.csv")
    assert list(trials.state) == ["COMPLETE"] * 4
