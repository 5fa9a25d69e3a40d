"""The cluster of clusters/onprem.yaml, brought up by `ray up` on hosts made of namespaces."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from tests.cluster.hosts import ROOT, Host, Network, stop, wait_until

RAY = Path(sys.executable).parent / "ray"
JOBS = "http://127.0.0.1:8265"
TOKEN = {"RAY_AUTH_MODE": "token"}
GET = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + open(sys.argv[2]).read().strip()})
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""
# A host that was cut off is given up after some 20 s; Ray's own patience is more than a minute.
IMPATIENT = "RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=3"


def local_config(network: Network, head: Host, workers: list[Host]) -> dict[str, object]:
    """onprem.yaml for these hosts; nothing is downloaded: .venv is the one that runs the tests."""
    config = yaml.safe_load((ROOT / "clusters" / "onprem.yaml").read_text())
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(network.folder / "key")}
    config["file_mounts"]["~/adversarial-pareto/tests"] = "tests"
    config["setup_commands"] = [f"ln -sfn {shlex.quote(sys.prefix)} ~/adversarial-pareto/.venv"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        commands[-1] = commands[-1].replace("RAY_AUTH_MODE", f"{IMPATIENT} RAY_AUTH_MODE")
    worker = config["worker_start_ray_commands"]
    worker[-1] = worker[-1].replace("ray start", "ray start --num-cpus=1 --num-gpus=0")
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        commands[-1] = re.sub("--object-store-memory=[0-9]+", "--object-store-memory=80000000", commands[-1])
    return config


class Cluster:
    """A laptop, a head and two workers, with a folder that all of them see (in place of NFS)."""

    def __init__(self, folder: Path) -> None:
        self.network = Network(folder)
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.laptop, self.head = self.network.add("laptop"), self.network.add("head")
        self.workers = [self.network.add("worker1"), self.network.add("worker2")]
        (self.laptop.home / "onprem.yaml").write_text(
            yaml.safe_dump(local_config(self.network, self.head, self.workers))
        )
        self.config_file = self.network.home / "onprem.yaml"  # as the laptop sees it
        self.forward: subprocess.Popen | None = None
        made = self.laptop.run(RAY, "get-auth-token", "--generate")
        assert made.returncode == 0, made.stderr

    def up(self) -> None:
        """`ray up` as a user types it, and the tunnel to the dashboard."""
        up = self.laptop.run(RAY, "up", "--yes", self.config_file, cwd=ROOT, timeout=900, **TOKEN)
        assert up.returncode == 0, (up.stdout + up.stderr)[-3000:]
        if self.forward is not None:
            stop(self.forward)
        log = self.laptop.folder / "dashboard.log"
        self.forward = self.laptop.start(RAY, "dashboard", self.config_file, log=log, **TOKEN)
        wait_until(lambda: self.get("api/version"), 180, "the head's job server")

    def wait_for_workers(self, n: int, seconds: float = 900) -> None:
        wait_until(lambda: self.n_workers() == n, seconds, f"{n} workers")

    def n_workers(self) -> int:
        """Workers that the head takes for alive."""
        nodes = self.get("nodes?view=summary").get("data", {}).get("summary", [])
        alive = [node for node in nodes if node.get("raylet", {}).get("state") == "ALIVE"]
        return sum("ip" in node and node["ip"] != self.head.address for node in alive)  # a new head learns it later

    def get(self, path: str, token: str = "~/.ray/auth_token") -> dict[str, object]:
        """The dashboard's answer to the laptop; much cheaper to ask for than by Ray's command line.

        Raises:
            PermissionError: If it was refused.
        """
        token = token.replace("~", str(self.network.home))
        got = self.laptop.run(sys.executable, "-c", GET, f"{JOBS}/{path}", token)
        if "HTTP Error 401" in got.stderr or "HTTP Error 403" in got.stderr:
            raise PermissionError(got.stderr)
        return json.loads(got.stdout) if got.returncode == 0 else {}

    def jobs(self, *words: object) -> subprocess.CompletedProcess:
        return self.laptop.run(RAY, "job", words[0], "--address", JOBS, *words[1:], **TOKEN)

    def submit(self, command: str, **environment: str) -> str:
        """Start `command` in the project's folder on the head; returns the job's name."""
        runtime = json.dumps({"env_vars": environment})
        words = ["--no-wait", "--runtime-env-json", runtime, "--", "bash", "-c"]
        submitted = self.jobs("submit", *words, f"cd ~/adversarial-pareto && exec {command}")
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        return re.search(r"raysubmit_\w+", submitted.stdout).group(0)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; empty where there is no answer."""
        return self.get(f"api/jobs/{job}").get("status", "")

    def log(self, job: str) -> str:
        return self.jobs("logs", job).stdout

    def fetch(self, remote: str, local: str) -> None:
        """Copy a folder of the head into the laptop's home."""
        words = ("rsync-down", self.config_file, remote, local)
        fetched = self.laptop.run(RAY, *words, cwd=self.network.home, **TOKEN)
        assert fetched.returncode == 0, fetched.stdout + fetched.stderr

    def close(self) -> None:
        if self.forward is not None:
            stop(self.forward)
        self.network.close()
