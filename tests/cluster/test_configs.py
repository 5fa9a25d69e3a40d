"""The cluster files against Ray's own code, and what `ray up cluster.yaml` would launch, on moto's AWS."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from study import pareto
from study.settings import StudySettings

ROOT = Path(__file__).parents[2]
FILES = {"aws": ROOT / "cluster.yaml", "local": ROOT / "clusters" / "onprem.yaml"}


def load(provider: str) -> dict[str, object]:
    return yaml.safe_load(FILES[provider].read_text())


def ray_start(commands: list[str]) -> str:
    (found,) = [command for command in commands if " ray start" in command or "/ray start" in command]
    return found


def program(folder: Path, name: str, *lines: str) -> None:
    """A shell script in place of a program."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / name).chmod(0o755)


def run_on_node(command: str, home: Path, path: str) -> int:
    """The status of a command of a cluster file, in the shell that Ray gives it, but for what a login would add."""
    (line,) = shlex.split(_with_interactive(command)[-1])
    return subprocess.run([shutil.which("bash"), "-c", line], env={"HOME": str(home), "PATH": path}).returncode


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with a token in it, where Ray may keep keys and caches."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    return tmp_path


@pytest.fixture
def aws(home, monkeypatch):
    """moto's AWS; boto3 and Ray find it by its address in the environment."""
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")  # AWS's own, which Ray attaches to the head's role
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    for name, value in [("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-west-2")]:
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(aws_config.time, "sleep", lambda seconds: None)  # for a new role to be known everywhere
    yield boto3.client("ec2")
    server.stop()


class Started:
    """In place of the thread that sets the head up over ssh."""

    exitcode = 0

    def __init__(self, **options: object) -> None:
        pass

    def start(self) -> None:
        pass

    def join(self) -> None:
        pass


@pytest.mark.parametrize("provider", FILES)
def test_rays_schema_accepts_the_file_and_nothing_misspelt(provider):
    validate_config(prepare_config(load(provider)))
    with pytest.raises(Exception, match="misspelt"):
        validate_config(prepare_config(load(provider) | {"misspelt": 1}))


@pytest.mark.parametrize("provider", FILES)
def test_trials_stay_off_the_head_and_the_dashboard_off_the_network(provider):
    head = ray_start(load(provider)["head_start_ray_commands"])
    assert "--num-cpus=0" in head and "--dashboard-host=127.0.0.1" in head


@pytest.mark.parametrize("provider", FILES)
def test_every_node_has_the_token_and_asks_for_it(provider):
    config = load(provider)
    assert "~/.ray/auth_token" in config["file_mounts"]
    for kind in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in ray_start(config[f"{kind}_start_ray_commands"])


@pytest.mark.parametrize("provider", FILES)
def test_all_that_the_project_needs_is_copied_and_installed_with_its_pins(provider):
    config = load(provider)
    copied = {target.removeprefix("~/adversarial-pareto/") for target in config["file_mounts"]}
    assert {"Makefile", "README.md", "constraints.txt", "pyproject.toml"} <= copied
    assert {"study", "trainables", "search_spaces"} <= copied
    assert all((ROOT / source).exists() for source in config["file_mounts"].values() if not source.startswith("~"))
    assert any("make .venv/installed" in command for command in config["setup_commands"])
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("provider", FILES)
@pytest.mark.parametrize(
    "script, started",
    [
        (None, False),
        (['[ "$1" = -d ] && echo started >>"$0.log" || exit 1'], True),
        (['[ "$1" = -d ] && echo started >>"$0.log" || grep -q get_server_list'], False),
        (['[ "$1" = -d ] && echo started >>"$0.log"', "exit 1"], True),
    ],
    ids=["not there", "none runs", "one answers", "none can start"],
)
def test_a_worker_starts_mps_where_it_is_and_none_runs(provider, script, started, tmp_path):
    (command,) = [command for command in load(provider)["worker_start_ray_commands"] if "mps" in command]
    if script:
        program(tmp_path / "bin", "nvidia-cuda-mps-control", *script)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}" if script else str(tmp_path / "bin")
    assert run_on_node(command, tmp_path, path) == 0
    assert (tmp_path / "bin" / "nvidia-cuda-mps-control.log").exists() == started


def test_a_new_node_waits_for_apt_lists_that_its_own_daily_update_holds(tmp_path):
    log = tmp_path / "log"
    program(tmp_path, "sudo", 'exec "$@"')
    program(tmp_path, "sleep")
    program(tmp_path, "apt-get", f'echo "$*" >>{log}', f"[ $(wc -l <{log}) -gt 2 ] || exit 100")
    for command in load("aws")["setup_commands"]:
        if "apt-get" in command:
            assert run_on_node(command, tmp_path, f"{tmp_path}:{os.environ['PATH']}") == 0
    *updates, install = log.read_text().splitlines()
    assert ["update" in call for call in updates] == [True] * 3 and "install" in install


def test_an_image_has_what_the_nodes_are_given(tmp_path):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    copied = {target.removeprefix("~/adversarial-pareto/") for target in load("aws")["file_mounts"]}
    assert {line[1:] for line in lines if line.startswith("!")} == copied - {"Makefile", "~/.ray/auth_token"}


def test_all_hosts_of_onprem_are_workers(home):
    config = prepare_config(load("local"))
    (node_type,) = config["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(config["provider"]["worker_ips"]) == 2


def test_ray_on_kubernetes_takes_the_rayjob_for_a_head_without_trials_and_gpu_workers(home):
    job = yaml.safe_load((ROOT / "clusters" / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    # As the autoscaler in the head's pod reads it.
    resource = {"metadata": {"name": "a", "namespace": "default"}, "spec": cluster}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(config)
    head, worker = (config["available_node_types"][name] for name in (config["head_node_type"], "gpu-worker"))
    assert head["resources"]["CPU"] == 0 and "GPU" not in head["resources"]
    assert worker["resources"]["CPU"] == 4 and worker["resources"]["GPU"] == 1
    assert (worker["min_workers"], worker["max_workers"]) == (4, 4)


def test_the_rayjobs_command_is_one_that_the_search_accepts(home, monkeypatch):
    job = yaml.safe_load((ROOT / "clusters" / "kuberay.yaml").read_text())
    python, *words = shlex.split(job["spec"]["entrypoint"])
    settings = accepted(words, monkeypatch)
    assert python == "python" and settings.address == "auto" and settings.results_dir == "/shared/results"


def test_the_documented_job_reaches_the_search_through_the_shell_that_ray_starts_it_in(tmp_path, monkeypatch):
    program(tmp_path / "bin", "ray", """printf '%s\\n' "$@" """)
    project = tmp_path / "adversarial-pareto"
    program(project / ".venv" / "bin", "python", "pwd", """printf '%s\\n' "$@" """)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def printed(command: str) -> list[str]:
        ran = subprocess.run(command, shell=True, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return ran.stdout.splitlines()

    (command,) = re.findall(r"^ray job submit (?:.*\\\n)*.*$", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE)
    words = printed(command)
    folder, *words = printed(shlex.join(words[words.index("--") + 1 :]))  # as `ray job submit` makes it one line
    assert folder == str(project)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pareto, "check_storage_path", lambda settings: None)
    settings = accepted(words, monkeypatch)
    assert settings.address == "auto" and settings.name == "cifar" and settings.storage_path.startswith("s3://")


def accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> StudySettings:
    """What the search takes from `-m study.pareto OPTIONS`."""
    assert words[:2] == ["-m", "study.pareto"]
    taken = []
    conduct = SimpleNamespace(conduct=lambda settings, space: taken.append(settings) or 0)
    monkeypatch.setitem(sys.modules, "study.conduct", conduct)  # spares the import of torch
    assert pareto.main(words[2:]) == 0
    return taken[0]


def test_ray_up_launches_one_head_and_the_autoscaler_spot_workers_with_gpus(aws, home, monkeypatch):
    monkeypatch.setattr(commands, "NodeUpdaterThread", Started)
    (image,) = aws.describe_images(Filters=[{"Name": "name", "Values": ["*ubuntu*"]}])["Images"][:1]
    written = FILES["aws"].read_text().replace("ami-00000000000000000", image["ImageId"])
    (home / "cluster.yaml").write_text(written)
    config = commands.create_or_update_cluster(
        str(home / "cluster.yaml"), None, None, no_restart=False, restart_only=False, yes=True, no_config_cache=True
    )
    (head,) = instances(aws)
    assert head["InstanceType"] == "m7i.xlarge" and "InstanceLifecycle" not in head
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/ray-autoscaler-v1")

    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu_worker"]["resources"]["CPU"] == 4 and types["gpu_worker"]["resources"]["GPU"] == 1
    assert (types["gpu_worker"]["min_workers"], types["gpu_worker"]["max_workers"]) == (0, config["max_workers"])
    provider = commands._get_node_provider(config["provider"], config["cluster_name"])
    tags = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_USER_NODE_TYPE: "gpu_worker"}
    provider.create_node(types["gpu_worker"]["node_config"], tags, 1)

    (worker,) = [instance for instance in instances(aws) if instance["InstanceId"] != head["InstanceId"]]
    assert worker["InstanceType"] == "g6.xlarge" and worker["InstanceLifecycle"] == "spot"
    everyone = [head, worker]
    for instance in everyone:
        named = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        assert named["project"] == "adversarial-pareto" and named["ray-cluster-name"] == "adversarial-pareto"
    assert {instance["KeyName"] for instance in everyone} == {
        key["KeyName"] for key in aws.describe_key_pairs()["KeyPairs"]
    }
    assert list((home / ".ssh").glob("*.pem"))
    (group,) = {group["GroupId"] for instance in everyone for group in instance["SecurityGroups"]}
    assert open_to_all(aws, group) == {22}


def instances(aws) -> list[dict[str, object]]:
    return [
        instance for reservation in aws.describe_instances()["Reservations"] for instance in reservation["Instances"]
    ]


def open_to_all(aws, group: str) -> set[int]:
    """Ports of the security group that any address may reach."""
    (found,) = aws.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert found["GroupName"] == "adversarial-pareto"
    rules = [rule for rule in found["IpPermissions"] if rule["IpRanges"]]
    assert all(rule["FromPort"] == rule["ToPort"] for rule in rules)
    return {rule["FromPort"] for rule in rules}
