"""`Survey`: which rank measures what, of the devices and links of a whole cluster.

The workers follow it, rank 0 awaits its results; both make it from the same devices, so it is not sent.
"""

from dataclasses import dataclass

from hetero_infer.spec import Device


@dataclass(frozen=True)
class Survey:
    """`devices` by rank."""

    devices: tuple[Device, ...]

    @property
    def timers(self) -> dict[str, int]:
        """The rank that times each device type: the first that has one."""
        first: dict[str, int] = {}
        for rank, device in enumerate(self.devices):
            first.setdefault(device.timed_as, rank)
        return first

    @property
    def pairs(self) -> dict[tuple[str, str], tuple[int, int]]:
        """The ranks that send and answer for each link: the first of two hosts, or the first two of one."""
        ranks: dict[str, list[int]] = {}
        for rank, device in enumerate(self.devices):
            ranks.setdefault(device.host, []).append(rank)
        return {
            (a, b): (ranks[a][0], ranks[b][0] if a != b else ranks[b][1])
            for a in ranks
            for b in ranks
            if a != b or len(ranks[a]) > 1
        }
