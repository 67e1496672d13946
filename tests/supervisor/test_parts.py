"""The small parts of the supervisor, one process each at most."""

import json
import os
import socket
import subprocess
import sys

import pytest

from hetero_infer.spec import Device, InputError
from hetero_infer.supervisor.channel import CHANNEL_VARIABLE
from hetero_infer.supervisor.child import clean_environment
from hetero_infer.supervisor.ending import Cause, Ending, cause_of
from hetero_infer.supervisor.interfaces import interface_addresses, interface_of
from hetero_infer.supervisor.place import Place
from hetero_infer.supervisor.pulse import Pulse
from hetero_infer.supervisor.worker import worker_environment

READY_THEN_WAIT = """
from hetero_infer.supervisor.channel import WorkerChannel
channel = WorkerChannel.from_environment()
assert channel.receive(timeout_s=0.01) is None
channel.send({"event": "ready"})
channel.send(channel.receive())
channel.receive()
"""


def test_started_by_hand_we_are_alone() -> None:
    assert Place.from_environment({}) == Place(rank=0, world_size=1, was_launched=False)


def test_deepspeed_says_where_rank_0_is() -> None:
    environ = {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "CROSS_RANK": "1"}
    place = Place.from_environment(environ)
    assert (place.rank, place.node, place.addresses) == (2, "1", (("10.0.0.1", 29500),))


def test_a_control_port_in_use_is_said_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(InputError, match=f"127.0.0.1:{port}.*--master_port"):
            Place.from_environment({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})


def test_an_address_that_other_hosts_cannot_reach_is_refused_where_there_are_others() -> None:
    environ = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    assert Place.from_environment(environ | {"CROSS_SIZE": "1"}).listener
    with pytest.raises(InputError, match=r"localhost is 127.0.0.1 on .*, which no other host can reach"):
        Place.from_environment(environ | {"CROSS_SIZE": "2"})


def test_an_address_belongs_to_an_interface_or_to_none() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("127.0.1.1") is None  # what Debian gives for a host's own name is no interface's address
    assert set(interface_addresses()) <= {name for _, name in socket.if_nameindex()}


def test_a_user_s_word_on_interfaces_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    environment = worker_environment(0, 2, Device("a", 0, "cpu", 1), "127.0.0.1", 1, own_address="127.0.0.1")
    assert (environment["GLOO_SOCKET_IFNAME"], environment["NCCL_SOCKET_IFNAME"]) == ("ib0", "lo")


@pytest.mark.processes
def test_it_shows_when_nobody_listens_any_more() -> None:
    ask = "import sys; from hetero_infer.supervisor.say import *; print(somebody_listens(), flush=True); say('x')"
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", f"{ask}; input(); {ask}"], text=True, **streams) as process:
        assert process.stdout.readline() == "True\n"
        process.stderr.close()
        print("go on", file=process.stdin, flush=True)
        assert process.stdout.readline() == "False\n"
        assert process.wait(5) == 0


def test_a_child_inherits_nothing_of_the_launcher() -> None:
    environ = {"RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1", "MASTER_ADDR": "x", "PATH": "/bin"}
    assert clean_environment(environ) == {"PATH": "/bin"}


def test_silence_is_counted_in_our_own_seconds() -> None:
    pulse = Pulse(silence_s=2)
    for _ in range(2):
        pulse.tick()
    assert not pulse.is_silent
    pulse.tick()
    assert pulse.is_silent
    pulse.heard()
    assert not pulse.is_silent


def test_a_killed_worker_explains_what_its_neighbours_report() -> None:
    neighbour = Ending(1, "stage 0: connection closed by peer", Cause.PERHAPS_A_CONSEQUENCE)
    signalled = Ending(75, "interrupted", Cause.SIGNAL)
    killed = Ending(1, "stage 1: killed by SIGKILL", Cause.CERTAIN)
    assert cause_of([neighbour, signalled, killed]) is killed
    assert cause_of([neighbour, signalled]) is signalled


@pytest.mark.processes
def test_the_channel_carries_lines_and_its_end_ends_the_worker() -> None:
    ours, theirs = socket.socketpair()
    environ = os.environ | {CHANNEL_VARIABLE: str(theirs.fileno())}
    with subprocess.Popen([sys.executable, "-c", READY_THEN_WAIT], env=environ, pass_fds=[theirs.fileno()]) as worker:
        theirs.close()
        events = (json.loads(line) for line in ours.makefile("rb"))
        spoken = (event for event in events if event != {"event": "heartbeat"})
        assert next(spoken) == {"event": "ready"}
        ours.sendall(b'{"command": "generate"}\n')
        assert next(spoken) == {"command": "generate"}
        ours.shutdown(socket.SHUT_RDWR)
        assert worker.wait(5) == 1
