"""`Coordinator`: rank 0's part of a run, from hello to the last goodbye. It decides when and how the run ends.

In: the members' events (rank 0's own member is one of them, over a socket pair). Out: commands, and the exit code.
"""

import asyncio
import contextlib
import json
import traceback
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hetero_infer
from hetero_infer.spec import Device, Fleet, HeteroInferError, InputError, RunConfig
from hetero_infer.spec.cluster import device_to_json
from hetero_infer.spec.files import read_text
from hetero_infer.supervisor.child import run_child
from hetero_infer.supervisor.ending import Cause, Ending, cause_of
from hetero_infer.supervisor.job import Job, RunningPipeline
from hetero_infer.supervisor.json_lines import MAX_LINE_BYTES, JsonLines
from hetero_infer.supervisor.place import LOOPBACK, Place
from hetero_infer.supervisor.pulse import BEAT_S, Pulse
from hetero_infer.supervisor.rank_map import Joined, RankMap, check_hosts
from hetero_infer.supervisor.say import say
from hetero_infer.supervisor.setup import Setup

CANCEL_S = 3
MIB = 2**20


class Peer:
    """A supervisor that joined: who it is, its connection, and whether it still speaks."""

    def __init__(self, joined: Joined, connection: JsonLines, silence_s: float) -> None:
        self.joined = joined
        self.connection = connection
        self.pulse = Pulse(silence_s)
        self.is_gone = False


class Coordinator:
    def __init__(self, place: Place, job: Job, setup: Setup) -> None:
        self._place = place
        self._job = job
        self._setup = setup
        self._limits = setup.limits
        self._peers: dict[int, Peer] = {}
        self._awaited = set(range(place.world_size))
        self._devices: tuple[Device, ...] = ()
        self._map: RankMap | None = None
        self._said: defaultdict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self._changed = asyncio.Event()
        self._pipelines: list[RunningPipeline] = []
        self._endings: list[Ending] = []
        self._is_ending = asyncio.Event()
        self._stop: dict[str, Any] | None = None
        self._is_shutting_down = False

    async def run(self, own_member: JsonLines) -> int:
        server = None
        if self._place.listener:
            server = await asyncio.start_server(self._meet, sock=self._place.listener, limit=MAX_LINE_BYTES)
        background = [asyncio.create_task(self._talk(own_member)), asyncio.create_task(self._beat())]
        work = asyncio.create_task(self._work())
        ending = await self._first_cause()
        if ending.line:
            say(ending.line)
        self._stop = {"command": "stop", "exit_code": ending.exit_code, "reason": ""}
        self._tell(self._peers, self._stop)
        work.cancel()
        await asyncio.wait({work}, timeout=CANCEL_S)
        await self._everybody_left()
        for task in background:
            task.cancel()
        if server:
            server.close()
        return ending.exit_code

    def interrupt(self) -> None:
        self._end(Ending(self._job.exit_code_if_interrupted, "interrupted, stopping", Cause.SIGNAL))

    # The life of a run: one method, one step each.

    async def _work(self) -> None:
        try:
            await self._live()
            self._end(Ending(0, ""))
        except HeteroInferError as error:
            self._end(Ending(error.exit_code, str(error)))
        except Exception as error:
            traceback.print_exc()
            self._end(Ending(1, f"{error!r} in the supervisor of rank 0"))

    async def _live(self) -> None:
        config = RunConfig.load(self._setup.config)
        self._job.open(config)
        await self._join(Fleet.load(self._setup.plan).devices if self._setup.plan else config.cluster.devices)
        fleet = None
        joined = [peer.joined for peer in self._peers.values()]
        if self._setup.is_survey:
            self._devices = config.cluster.devices
            self._map = RankMap.of_every_slot(self._devices, joined)
            await self._prepare(json.dumps([device_to_json(device) for device in self._devices]))
        else:
            plan_path = await self._get_plan(config)
            fleet = Fleet.load(plan_path)
            self._map = RankMap.of(fleet, joined)
            self._devices = fleet.devices
            stages = " and ".join(str(len(replica.stages)) for replica in fleet.replicas)
            say(f"plan {plan_path}: {stages} stages; quantising what is missing")
            await self._prepare(read_text(plan_path, "plan"))
        plans = fleet.replicas if fleet else (None,)
        self._pipelines = [
            RunningPipeline(plan, self._peers[leader].connection.send)
            for plan, leader in zip(plans, self._map.leaders, strict=True)
        ]
        await self._start_workers()
        await self._job.run(self._pipelines)
        await self._shut_down()
        if fleet:
            self._say_memory(fleet)

    async def _join(self, devices: tuple[Device, ...]) -> None:
        """`devices[rank]`, if the launcher started as many as the plan or the config has."""
        try:
            await asyncio.wait_for(self._all_said("hello", set(self._awaited)), self._limits.join_s)
        except TimeoutError:
            missing = sorted(self._awaited - self._peers.keys())
            self._awaited = set(self._peers)
            there = ", ".join(f"{rank} ({peer.joined.host})" for rank, peer in sorted(self._peers.items()))
            hosts = [device.host for device in devices] if len(devices) == self._place.world_size else []
            absent = ", ".join(f"{rank} ({hosts[rank]})" if hosts else f"{rank}" for rank in missing)
            raise HeteroInferError(
                f"rank {absent} of {self._place.world_size} did not join within {self._limits.join_s:.0f} s; joined: "
                f"{there}"
            ) from None

    async def _get_plan(self, config: RunConfig) -> Path:
        if self._setup.plan:
            return self._setup.plan
        check_hosts(config.cluster.devices, [peer.joined for peer in self._peers.values()])
        say(f"{len(self._peers)} supervisors joined; planning")
        command = [*self._setup.commands.plan, "-c", str(self._setup.config), "-o", str(config.plan)]
        await run_child(command, "planning", self._limits.terminate_s)
        return config.plan

    async def _prepare(self, text: str) -> None:
        for rank, peer in self._peers.items():
            devices = self._map.devices_to_prepare.get(rank, ())
            peer.connection.send({"command": "prepare", "plan": text, "devices": devices})
        await self._all_said("prepared", set(self._peers))

    async def _start_workers(self) -> None:
        port_of = await self._open_ports()
        for ranks in self._map.worlds:
            address, port = self._address_of(ranks[0]), port_of[ranks[0]]
            for stage, rank in enumerate(ranks):
                place = {"stage": stage, "num_stages": len(ranks), "address": address, "port": port}
                own = {"own_address": self._address_of(rank), "device": device_to_json(self._devices[rank])}
                self._tell([rank], {"command": "start", **place, **own})
        say("measuring" if self._setup.is_survey else "loading")
        await self._all_said("ready", set(self._map.workers))

    async def _open_ports(self) -> dict[int, int]:
        """Where each replica's workers meet, by its leader. One finds those of a host: two might find the same."""
        leaders_at: defaultdict[str, list[int]] = defaultdict(list)
        for leader in self._map.leaders:
            leaders_at[self._address_of(leader)].append(leader)
        for address, leaders in leaders_at.items():
            self._tell(leaders[:1], {"command": "open_ports", "address": address, "count": len(leaders)})
        opened = await self._all_said("ports_opened", {leaders[0] for leaders in leaders_at.values()})
        return {
            leader: port
            for leaders in leaders_at.values()
            for leader, port in zip(leaders, opened[leaders[0]]["ports"], strict=True)
        }

    async def _shut_down(self) -> None:
        self._is_shutting_down = True
        self._tell(self._map.leaders, {"command": "shutdown"})
        try:
            ended = self._all_said("worker_ended", set(self._map.workers))
            await asyncio.wait_for(ended, self._limits.stop_s)
        except TimeoutError:
            say("the work is done, but not every worker left when told to; ending them")

    def _say_memory(self, fleet: Fleet) -> None:
        """What each stage held at most, beside the plan's figure and its budget."""
        for rank in self._map.workers:
            if rank not in self._said["peak_memory"]:  # it did not leave by itself
                continue
            peak, device = self._said["peak_memory"][rank]["num_bytes"], self._devices[rank]
            replica, stage = self._map.seat_of(rank)
            estimate = fleet.replicas[replica].estimate
            planned = f"planned {_mib(estimate.memory_of(stage))}, " if estimate else ""
            # On a CPU libraries and the buffers of gloo and MKL count, too.
            own = ", some 20 of the first are the process's own" if device.is_cpu else ""
            budget = _mib(device.memory_bytes)
            say(f"{self._part_of(rank)} on {device.name}: at most {_mib(peak)} MiB, {planned}budget {budget}{own}")

    # Members: who is there, what they say.

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = JsonLines(reader, writer)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # of a silent one at the end: asyncio would print it
                await self._talk(connection)
        finally:
            connection.close()

    async def _talk(self, connection: JsonLines) -> None:
        peer = self._admit(await connection.receive(), connection)
        if peer is None:
            return
        while (message := await connection.receive()) is not None:
            peer.pulse.heard()
            self._listen(peer, message)
        peer.is_gone = True
        self._changed.set()
        self._end(Ending(1, f"{self._who(peer)}: its supervisor (pid {peer.joined.pid}) is gone"))

    def _admit(self, hello: dict[str, Any] | None, connection: JsonLines) -> Peer | None:
        if not hello or hello.get("event") != "hello" or hello.get("rank") not in range(self._place.world_size):
            return None  # a stranger on our port
        joined = Joined(hello["rank"], hello["host"], hello["node"], hello["pid"])
        who = f"rank {joined.rank} on {joined.host} (pid {joined.pid})"
        if joined.rank in self._peers:
            first = self._peers[joined.rank].joined
            reason = f"{who} is refused: rank {joined.rank} joined already, from {first.host} (pid {first.pid})"
            connection.send({"command": "stop", "exit_code": InputError.exit_code, "reason": reason})
            return None
        peer = self._peers[joined.rank] = Peer(joined, connection, self._limits.silence_s)
        if hello["version"] != hetero_infer.__version__:
            ours = hetero_infer.__version__
            reason = f"{who} has hetero-infer {hello['version']}, rank 0 has {ours}; install the same on every host"
            self._end(Ending(InputError.exit_code, reason))
        if self._stop:
            connection.send(self._stop)
        self._note("hello", joined.rank, hello)
        return peer

    def _listen(self, peer: Peer, message: dict[str, Any]) -> None:
        match message["event"]:
            case "heartbeat":
                pass
            case "tokens" | "finished" | "batch_done" | "measured":
                replica, _ = self._map.seat_of(peer.joined.rank)
                self._pipelines[replica].report(message)
            case "interrupted":
                self.interrupt()
            case "failed":
                self._end(Ending(message["exit_code"], f"{self._who(peer)}: {message['what']}"))
            case "worker_ended":
                line = f"{self._who(peer, message['pid'])}: worker {message['what']}"
                if not self._is_shutting_down:
                    cause = Cause(message["cause"])
                    self._end(Ending(message["exit_code"], f"{line}; stopping the others", cause))
                elif not message["clean"]:
                    say(f"{line}, after its work was done")
                self._note("worker_ended", peer.joined.rank, message)
            case event:
                self._note(event, peer.joined.rank, message)

    def _note(self, event: str, rank: int, message: dict[str, Any]) -> None:
        self._said[event][rank] = message
        self._changed.set()

    async def _all_said(self, event: str, ranks: set[int]) -> dict[int, dict[str, Any]]:
        while not ranks <= self._said[event].keys():
            self._changed.clear()
            await self._changed.wait()
        return self._said[event]

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._tell(self._peers, {"command": "heartbeat"})
            for peer in self._peers.values():
                peer.pulse.tick()
                if peer.pulse.is_silent and not peer.is_gone:
                    pid, silence_s = peer.joined.pid, self._limits.silence_s
                    line = f"{self._who(peer)}: its supervisor (pid {pid}) is silent for {silence_s:.0f} s"
                    self._end(Ending(1, f"{line}; stopping the others"))
                    peer.is_gone = True  # it will not say goodbye

    def _tell(self, ranks: Iterable[int], message: dict[str, Any]) -> None:
        for rank in ranks:
            self._peers[rank].connection.send(message)

    def _who(self, peer: Peer, pid: int | None = None) -> str:
        rank, host = peer.joined.rank, peer.joined.host
        if not self._map:
            return f"rank {rank} (host {host})"
        return f"{self._part_of(rank)} on {self._devices[rank].name} (host {host}{f', pid {pid}' if pid else ''})"

    def _part_of(self, rank: int) -> str:
        """What it is there for, in words."""
        seat = self._map.seat_of(rank)
        if seat is None or self._setup.is_survey:
            return f"rank {rank}"
        replica, stage = seat
        return f"replica {replica}, stage {stage}" if len(self._map.worlds) > 1 else f"stage {stage}"

    def _address_of(self, rank: int) -> str:
        """Where the others reach this rank: the address of the connection that is there already."""
        if rank != 0:
            return self._peers[rank].connection.remote_address
        others = [peer.connection for other, peer in self._peers.items() if other != 0]
        return others[0].local_address if others else LOOPBACK

    # The end.

    def _end(self, ending: Ending) -> None:
        self._endings.append(ending)
        self._is_ending.set()

    async def _first_cause(self) -> Ending:
        """Of what ends the run; where the first report may be a consequence, the cause gets a moment to arrive."""
        await self._is_ending.wait()
        if self._endings[0].cause is not Cause.CERTAIN:
            await asyncio.sleep(self._limits.settle_s)
        return cause_of(self._endings)

    async def _everybody_left(self) -> None:
        """Those who join late are told to stop, too."""
        deadline = asyncio.get_running_loop().time() + self._limits.stop_s
        while asyncio.get_running_loop().time() < deadline:
            if all(rank in self._peers and self._peers[rank].is_gone for rank in self._awaited):
                return
            await asyncio.sleep(0.02)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.1f}"
