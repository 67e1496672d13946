"""Several hosts on one machine: each with its own name, address, sshd, processes and disk, joined by a switch.

    python -m tests.hosts.cluster                    # a shell on the first of three hosts; leave it, and all are gone
    python -m tests.hosts.cluster ssh node-b ls /    # or one command there; its exit code is ours

Hosts are Linux namespaces without a name, so nothing of the machine is changed: not its network, not its `/etc/hosts`,
not `~/.ssh`. A host reads the machine's disk and writes to its own (an overlay); no disk is shared. A host is gone with
its first process, which the kernel kills when the process that made the cluster dies, however it dies.

It needs Linux, root, and the Debian packages iproute2, openssh-server and pdsh.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hetero_infer.supervisor.leash import leashed

ROOT = Path(__file__).parent.parent.parent
BOOT = Path(__file__).with_name("boot.sh")
INSTALLATION = (ROOT, Path(sys.prefix), Path(sys.base_prefix))  # the same on each host, and at the same place
PROGRAMS = {
    "ip": "iproute2",
    "ssh": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "pdsh": "pdsh",
    "unshare": "util-linux",
}
NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child")
PROBE = """
ip link add name switch type bridge
mount -t tmpfs disk /media
mkdir /media/upper /media/work /media/root
mount -t overlay overlay -o lowerdir=/,upperdir=/media/upper,workdir=/media/work /media/root
"""
NAMES = ("node-a", "node-b", "node-c")
ADDRESS = "10.77.0.{}"

SSHD_CONFIG = """\
HostKey /etc/ssh/key_of_every_host
PermitRootLogin prohibit-password
UsePAM no
MaxStartups 100
PidFile none
ClientAliveInterval 1
ClientAliveCountMax 4
"""
# The first two end an ssh whose host is gone: else a launcher waits for it for a quarter of an hour.
SSH_CONFIG = """\
ServerAliveInterval 1
ServerAliveCountMax 4
ConnectTimeout 5
LogLevel ERROR
"""


class NoCluster(Exception):
    """Why hosts cannot be made on this machine."""


class Host:
    """A running host. `pid` is the machine's number of its first process."""

    def __init__(self, name: str, address: str, booting: subprocess.Popen[str]) -> None:
        self.name = name
        self.address = address
        self._booting = booting
        self.pid = self._wait_until_up()
        self._of_the_host_itself = set(self._all_processes())

    def command(self, words: Sequence[str], folder: Path = Path("/")) -> list[str]:
        """The command line that runs `words` on this host, in `folder` of its disk."""
        return ["nsenter", f"--target={self.pid}", "--all", "--root", f"--wdns={folder}", *words]

    def run(self, *words: str) -> str:
        return _output(self.command(words))

    def path(self, path: Path | str) -> Path:
        """A path on this host's disk, as the machine reaches it."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def processes(self) -> dict[int, str]:
        """The machine's numbers and the commands of what runs here; without sshd and the host's other services."""
        running = self._all_processes().items()
        ours = self._of_the_host_itself
        return {pid: words for pid, words in running if words and not words.startswith("sshd:") and pid not in ours}

    def switch_off(self) -> None:
        """As a power cut: every process is killed, and the disk is gone."""
        self._booting.kill()
        self._booting.wait()

    def _wait_until_up(self) -> int:
        said = []
        for line in self._booting.stdout:
            if line.startswith("up "):
                return int(line.split()[1])
            said.append(line)
        raise NoCluster(f"{self.name} did not come up: {''.join(said).strip()}")

    def _all_processes(self) -> dict[int, str]:
        """One that has ended, or is about to begin, has no words."""
        found = {}
        with contextlib.suppress(OSError):  # switched off
            ours = os.readlink(f"/proc/{self.pid}/ns/pid")
            for folder in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    if folder.name.isdigit() and os.readlink(folder / "ns" / "pid") == ours:
                        words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found[int(folder.name)] = words.strip()
        return found


class Cluster:
    """A context: the hosts are up inside it. The first one is the head, where people start things."""

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        self._addresses = {name: ADDRESS.format(number) for number, name in enumerate(names, 1)}
        self._undo = contextlib.ExitStack()
        self.hosts: dict[str, Host] = {}

    @property
    def head(self) -> Host:
        return next(iter(self.hosts.values()))

    def __enter__(self) -> "Cluster":
        check_machine()
        with self._undo:
            self._switch = self._start(["unshare", "--net", "sh", "-c", "echo up; exec sleep infinity"])
            self._switch.stdout.readline()
            self._at_switch("link", "add", "switch", "type", "bridge")
            self._at_switch("link", "set", "switch", "up")
            with tempfile.TemporaryDirectory() as folder:
                booting = {name: self._boot(name, files) for name, files in self._write_files(Path(folder))}
                self.hosts = {name: Host(name, self._addresses[name], process) for name, process in booting.items()}
            for host in self.hosts.values():
                self._plug_in(host)
            self._undo = self._undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def pull_cable(self, host: Host) -> None:
        self._at_switch("link", "set", host.name, "down")

    def processes(self) -> dict[str, dict[int, str]]:
        """What runs on each host that runs anything, launchers included."""
        return {name: running for name, host in self.hosts.items() if (running := host.processes())}

    def _boot(self, name: str, files: Path) -> subprocess.Popen[str]:
        folders = [str(folder.resolve()) for folder in INSTALLATION]
        return self._start(["unshare", *NAMESPACES, "bash", str(BOOT), name, str(files), *folders])

    def _start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        # In a session of its own: a Ctrl-C is for what runs on the hosts.
        process = subprocess.Popen(leashed(list(command)), text=True, start_new_session=True, cwd=ROOT, **streams)
        self._undo.enter_context(process)  # closes its pipe and waits
        self._undo.callback(process.kill)
        return process

    def _plug_in(self, host: Host) -> None:
        cable = ("link", "add", "name", host.name, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._at_switch(*cable)
        self._at_switch("link", "set", host.name, "master", "switch", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")

    def _at_switch(self, *words: str) -> None:
        _output(["nsenter", f"--target={self._switch.pid}", "--net", "ip", *words])

    def _write_files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """For each host, what is put on its disk: names, and keys that open every host from every other."""
        for key in ("host", "user"):
            _output(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", str(folder / key)])
        key_of_hosts = (folder / "host.pub").read_text()
        for name in self._addresses:
            files = folder / name
            ssh, sshd = files / "root" / ".ssh", files / "etc" / "ssh"
            ssh.mkdir(parents=True, mode=0o700)
            sshd.mkdir(parents=True)
            (files / "etc" / "hosts").write_text(self._names_as_seen_from(name))
            (files / "etc" / "hostname").write_text(f"{name}\n")
            (sshd / "sshd_config").write_text(SSHD_CONFIG)
            shutil.copy(folder / "host", sshd / "key_of_every_host")
            shutil.copy(folder / "user", ssh / "id_ed25519")
            shutil.copy(folder / "user.pub", ssh / "authorized_keys")
            (ssh / "known_hosts").write_text(f"* {key_of_hosts}")
            (ssh / "config").write_text(SSH_CONFIG)
            yield name, files

    def _names_as_seen_from(self, name: str) -> str:
        """As Debian's installer writes them: a host's own name is a loopback address."""
        others = [f"{address} {other}" for other, address in self._addresses.items() if other != name]
        return "\n".join(["127.0.0.1 localhost", f"127.0.1.1 {name}", *others]) + "\n"


def check_machine() -> None:
    """Raises `NoCluster` with the reason if this machine cannot have hosts."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NoCluster("hosts on one machine need Linux and root")
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            raise NoCluster(f"there is no {Path(program).name} on this machine; install {package}")
    done = subprocess.run(["unshare", *NAMESPACES, "sh", "-ec", PROBE], capture_output=True, text=True)
    if done.returncode:
        raise NoCluster(f"this machine makes no namespaces with a network and a disk: {done.stderr.strip()}")


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoCluster(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def main() -> int:
    words = sys.argv[1:] or [os.environ.get("SHELL", "bash")]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    try:
        with Cluster() as cluster:
            print(f"hosts: {', '.join(cluster.hosts)}; on {cluster.head.name}: {' '.join(words)}", file=sys.stderr)
            return subprocess.run(cluster.head.command(words, Path.cwd()), env=environment).returncode
    except NoCluster as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
