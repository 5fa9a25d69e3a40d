"""Hosts for tests, out of Linux namespaces: own address, sshd, processes, /tmp and home; all else in common.

A host is a process tree below `unshare`: killing that process is pulling the plug. The bridge that joins the
hosts lies in a network namespace too, so that nothing of it outlives the test, and no address is anybody else's.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUBNET = "10.77.0"
TOOLS = ("ip", "sshd", "ssh-keygen", "rsync", "unshare", "nsenter", "setpriv")
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Arguments: the host's name, its folder, where its home shall be, then what below /tmp hosts shall see in common.
BOOT = """
set -e
name=$1 folder=$2 home=$3; shift 3
mount --make-rprivate /
hostname "$name"
mount --bind "$folder/home" "$home"
for path in "$@"; do
    mkdir -p "$folder/tmp${path#/tmp}"
    mount --rbind "$path" "$folder/tmp${path#/tmp}"
done
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/shadow" /etc/shadow
mount --bind "$folder/hosts" /etc/hosts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir /run/sshd
mount --rbind "$folder/tmp" /tmp
"$(command -v sshd)" -D -e -f "$folder/sshd_config" &
wait
"""

SSHD_CONFIG = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PermitRootLogin yes
UsePAM no
StrictModes no
PidFile none
MaxStartups 100
"""


def missing() -> str:
    """Why there can be no such hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "not root, which network namespaces need"
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    return f"{', '.join(lacking)} not installed" if lacking else ""


def call(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, env={"PATH": PATH}, capture_output=True)


def unshared(*options: str, command: Sequence[str], log: Path) -> subprocess.Popen:
    """`command` in namespaces of its own, killed with all its descendants when we die or kill what is returned."""
    words = ["setpriv", "--pdeathsig", "KILL", "unshare", *options, "--fork", "--kill-child", *command]
    with open(log, "a") as out:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={"PATH": PATH}, start_new_session=True
        )
    own = os.readlink("/proc/self/ns/net")
    wait_until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own and inner_pid(process), 60, "a namespace")
    return process


def inner_pid(process: subprocess.Popen) -> int | None:
    """The process that `unshare` has forked."""
    words = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(words[0]) if words else None


def wait_until(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.2)


class Network:
    """The bridge, and the key with which root may log in on every host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self.home = folder / "home"  # of root, on each host its own
        self.home.mkdir(parents=True)
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
        self.switch = unshared("--net", command=["sleep", "infinity"], log=folder / "switch.log")
        self.ip("link", "add", "bridge", "type", "bridge")
        self.ip("addr", "add", f"{SUBNET}.1/24", "dev", "bridge")
        self.ip("link", "set", "bridge", "up")

    def ip(self, *words: object) -> None:
        call("nsenter", "--target", self.switch.pid, "--net", "ip", *words)

    def add(self, name: str) -> "Host":
        self.hosts[name] = Host(self, name, f"{SUBNET}.{len(self.hosts) + 10}")
        return self.hosts[name]

    def close(self) -> None:
        for host in self.hosts.values():
            host.power_off()
        self.switch.kill()
        self.switch.wait()


class Host:
    """One host on the network."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.network, self.name, self.address = network, name, address
        self.folder = network.folder / name
        self.home = self.folder / "home"  # as seen from outside; the host itself sees it at network.home
        self._write_files()
        self.power_on()

    def _write_files(self) -> None:
        folder = self.folder
        self.home.mkdir(parents=True)
        accounts = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
        home = str(self.network.home)
        accounts = [[*fields[:5], home, *fields[6:]] if fields[0] == "root" else fields for fields in accounts]
        (folder / "passwd").write_text("\n".join(":".join(fields) for fields in accounts) + "\n")
        (folder / "shadow").write_text("root:*:20000:0:99999:7:::\nsshd:*:20000:0:99999:7:::\n")
        (self.home / ".bashrc").touch()
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
        shutil.copy(self.network.folder / "key.pub", folder / "authorized_keys")
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key")

    def power_on(self) -> None:
        """Start with an empty /tmp, on the network."""
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        (self.folder / "tmp").mkdir(mode=0o1777)
        shared = [str(path) for path in {self.network.folder, ROOT, Path(sys.prefix)} if path.is_relative_to("/tmp")]
        boot = ["bash", "-c", BOOT, "boot", self.name, str(self.folder), str(self.network.home), *shared]
        self.process = unshared(
            "--net", "--pid", "--mount", "--uts", "--mount-proc", command=boot, log=self.folder / "log"
        )
        self.pid = inner_pid(self.process)
        network = self.network
        network.ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.pid)
        network.ip("link", "set", self.name, "master", "bridge", "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", f"{SUBNET}.1"),
        ):
            call("nsenter", "--target", self.pid, "--net", "ip", *words)
        wait_until(lambda: self.run("true").returncode == 0 and self._listens(), 60, f"sshd on {self.name}")

    def _listens(self) -> bool:
        return self.run("bash", "-c", "</dev/tcp/127.0.0.1/22").returncode == 0

    def power_off(self) -> None:
        """End every process at once."""
        self.process.kill()
        self.process.wait()
        # The interface goes with the last process of its namespace, some moments later.
        end = time.monotonic() + 60
        while os.path.exists(f"/proc/{self.pid}") and time.monotonic() < end:
            time.sleep(0.05)

    def link(self, state: str) -> None:
        """Plug the network cable in (`up`) or out (`down`)."""
        self.network.ip("link", "set", self.name, state)

    def enter(self, words: Sequence[object], environment: Mapping[str, str]) -> list[str]:
        variables = {"PATH": PATH, "HOME": str(self.network.home), "TERM": "dumb", "LANG": "C.UTF-8", **environment}
        entered = ["nsenter", "--target", self.pid, "--net", "--mount", "--pid", "--uts"]
        return [str(word) for word in [*entered, "env", "-i", *(f"{k}={v}" for k, v in variables.items()), *words]]

    def run(
        self, *words: object, timeout: float = 120, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess:
        words = ("env", "--chdir", cwd or self.network.home, *words)
        return subprocess.run(
            self.enter(words, environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def start(self, *words: object, log: Path, **environment: str) -> subprocess.Popen:
        """A process that runs until it is killed, or the host powered off."""
        with open(log, "a") as out:
            return subprocess.Popen(
                self.enter(words, environment), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )


def stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
