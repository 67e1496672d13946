"""`RankMap`: stage order → launcher ranks → worker ranks, turned here and nowhere else.

Launcher rank `r` is the r-th (host, slot) of the hostfile, and so device `r` of the plan. Stage `j` stands on a device
of the plan; its worker has rank `j` in the pipeline's own world, which leaves the unused slots out.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hetero_infer.spec import Device, InputError, Plan


@dataclass(frozen=True)
class Joined:
    """A supervisor that said hello. `node` is the launcher's number of its host, where it gives one."""

    rank: int
    host: str
    node: str
    pid: int


@dataclass(frozen=True)
class RankMap:
    """`launcher_ranks[stage]` is the supervisor that runs the stage; `stages_to_prepare[rank]` the stages whose
    checkpoint it makes: all of its host, for the first supervisor there with a stage."""

    launcher_ranks: tuple[int, ...]
    stages_to_prepare: dict[int, tuple[int, ...]]

    @classmethod
    def of(cls, plan: Plan, joined: Sequence[Joined]) -> "RankMap":
        check_hosts(plan.devices, joined)
        rank_of = {device.name: rank for rank, device in enumerate(plan.devices)}
        launcher_ranks = tuple(rank_of[stage.device] for stage in plan.stages)
        stages_of_host: dict[str, list[int]] = {}
        for stage in range(len(plan.stages)):
            stages_of_host.setdefault(plan.device_of(stage).host, []).append(stage)
        to_prepare = {min(launcher_ranks[s] for s in stages): tuple(stages) for stages in stages_of_host.values()}
        return cls(launcher_ranks, to_prepare)

    @classmethod
    def of_every_slot(cls, devices: Sequence[Device], joined: Sequence[Joined]) -> "RankMap":
        """A worker on each, with the launcher's rank, and nothing to prepare."""
        check_hosts(devices, joined)
        return cls(tuple(range(len(devices))), {})

    def stage_of(self, rank: int) -> int | None:
        return self.launcher_ranks.index(rank) if rank in self.launcher_ranks else None


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
