"""`RankMap`: stages of replicas → launcher ranks → worker ranks, turned here and nowhere else.

Launcher rank `r` is the r-th (host, slot) of the hostfile, and so device `r` of the plan. Each replica's workers are a
world of their own, in which stage `j` has rank `j`; unused slots are in none.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hetero_infer.spec import Device, Fleet, InputError


@dataclass(frozen=True)
class Joined:
    """A supervisor that said hello. `node` is the launcher's number of its host, where it gives one."""

    rank: int
    host: str
    node: str
    pid: int


@dataclass(frozen=True)
class RankMap:
    """`worlds[replica][stage]` is the rank of the supervisor that runs the stage; `devices_to_prepare[rank]` are those
    whose checkpoint it makes: all with a stage on its host, for the first supervisor there with one."""

    worlds: tuple[tuple[int, ...], ...]
    devices_to_prepare: dict[int, tuple[str, ...]]

    @classmethod
    def of(cls, fleet: Fleet, joined: Sequence[Joined]) -> "RankMap":
        check_hosts(fleet.devices, joined)
        rank_of = {device.name: rank for rank, device in enumerate(fleet.devices)}
        worlds = tuple(tuple(rank_of[stage.device] for stage in replica.stages) for replica in fleet.replicas)
        ranks_of_host: dict[str, list[int]] = {}
        for rank in sorted(itertools.chain.from_iterable(worlds)):
            ranks_of_host.setdefault(fleet.devices[rank].host, []).append(rank)
        to_prepare = {ranks[0]: tuple(fleet.devices[rank].name for rank in ranks) for ranks in ranks_of_host.values()}
        return cls(worlds, to_prepare)

    @classmethod
    def of_every_slot(cls, devices: Sequence[Device], joined: Sequence[Joined]) -> "RankMap":
        """A worker on each, with the launcher's rank, and nothing to prepare."""
        check_hosts(devices, joined)
        return cls((tuple(range(len(devices))),), {})

    @property
    def leaders(self) -> tuple[int, ...]:
        """The ranks of the first stages."""
        return tuple(ranks[0] for ranks in self.worlds)

    @property
    def workers(self) -> tuple[int, ...]:
        """The ranks that have a worker, stage by stage and replica by replica."""
        return tuple(itertools.chain.from_iterable(self.worlds))

    def seat_of(self, rank: int) -> tuple[int, int] | None:
        """Replica and stage."""
        return next(((replica, ranks.index(rank)) for replica, ranks in enumerate(self.worlds) if rank in ranks), None)


def check_hosts(devices: Sequence[Device], joined: Sequence[Joined]) -> None:
    """The same number of slots, host by host. Names may differ (an alias, localhost), but not contradict."""
    joined = sorted(joined, key=lambda one: one.rank)
    wanted = _runs([device.host for device in devices])
    there = _runs([(one.host, one.node) for one in joined])
    there_text = ", ".join(f"{host}: {count}" for (host, _), count in there)
    wanted_text = ", ".join(f"{host}: {count}" for host, count in wanted)
    if [count for _, count in wanted] != [count for _, count in there]:
        raise InputError(
            f"the plan's hosts and slots are {wanted_text}, those that joined are {there_text} (in rank order); start "
            "with the hostfile that the config names, or plan for the one you start with"
        )
    names = {host for host, _ in wanted}
    for (wanted_host, _), ((host, _), _) in zip(wanted, there, strict=True):
        for name in (host, host.partition(".")[0]):
            if name in names and name != wanted_host:
                raise InputError(
                    f"{name} joined where the plan has {wanted_host}: ranks must follow the hostfile, here "
                    f"{wanted_text}; those that joined are {there_text}"
                )


def _runs(items: Sequence[Any]) -> list[tuple[Any, int]]:
    return [(item, len(list(group))) for item, group in itertools.groupby(items)]
