"""What is there: the devices of this machine or of a hostfile, their links, and what is known about both."""

import math
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hetero_infer import prepare
from hetero_infer.cost.latency import MEASURED, SPEC_SHEET
from hetero_infer.measure.local_devices import LocalDevice, cpu_device, cuda_devices
from hetero_infer.report import link_figures, text_table
from hetero_infer.spec import Cluster, Device, Link, ModelSpec, ProfileTable, RunConfig
from hetero_infer.spec.gpu_type import GIB, GPU_TYPES


@dataclass(frozen=True)
class Entry:
    """A device. `free_bytes` only of this machine's; `profile` is how a plan would know its seconds, if a config says
    for which model."""

    name: str
    type: str
    memory_bytes: int
    free_bytes: int | None
    profile: str | None = None
    description: str = ""


@dataclass(frozen=True)
class LinkEntry:
    source: str
    target: str
    link: Link
    is_measured: bool


@dataclass(frozen=True)
class Inventory:
    """`hostfile_line` is for this machine's devices, when no hostfile was asked about."""

    devices: tuple[Entry, ...]
    links: tuple[LinkEntry, ...] = ()
    hostfile_line: str | None = None

    def to_json(self) -> dict[str, Any]:
        links = [
            {"from": entry.source, "to": entry.target, **asdict(entry.link), "is_measured": entry.is_measured}
            for entry in self.links
        ]
        devices = [asdict(entry) for entry in self.devices]
        return {"devices": devices, "links": links, "hostfile_line": self.hostfile_line}

    def __str__(self) -> str:
        rows = [("device", "type", "memory", "free", "profile")]
        rows += [
            (
                entry.name,
                entry.type + (f" ({entry.description})" if entry.description else ""),
                _amount(entry.memory_bytes),
                "-" if entry.free_bytes is None else _amount(entry.free_bytes),
                entry.profile or "-",
            )
            for entry in self.devices
        ]
        parts = [text_table(rows)]
        if self.links:
            links = [("from", "to", "α µs", "β Gbit/s", "link")]
            links += [
                (
                    entry.source,
                    entry.target,
                    *link_figures(entry.link),
                    "measured" if entry.is_measured else "default_link",
                )
                for entry in self.links
            ]
            parts.append(text_table(links))
        if self.hostfile_line:
            parts.append(f"for a hostfile: {self.hostfile_line}")
        return "\n\n".join(parts)


def of_this_machine() -> Inventory:
    cuda, cpu = cuda_devices(), cpu_device()
    named = [(f"localhost:{slot}", device) for slot, device in enumerate(cuda)] + [("localhost", cpu)]
    entries = (
        Entry(name, device.type, device.memory_bytes, device.free_bytes, description=device.description)
        for name, device in named
    )
    return Inventory(tuple(entries), hostfile_line=hostfile_line(cuda or [cpu]))


def hostfile_line(devices: Sequence[LocalDevice]) -> str:
    """Ready to paste: of GPUs all memory, of a CPU what is free now."""
    amounts = [device.free_bytes if device.type == "cpu" else device.memory_bytes for device in devices]
    types = ",".join(device.type for device in devices)
    memory = ",".join(f"{math.floor(amount / GIB * 10) / 10}GiB" for amount in amounts)
    return f"localhost slots={len(devices)}  # gpu={types} memory={memory}"


def of_cluster(cluster: Cluster) -> Inventory:
    """Of a hostfile alone: nothing is known about links, nor for which model to look into a profile."""
    return Inventory(tuple(_entry(device) for device in cluster.devices))


def of_run(config: RunConfig) -> Inventory:
    cluster, spec = config.cluster, ModelSpec.from_folder(config.model)
    config = config.for_model(spec)
    profile = ProfileTable.load_if_there(config.profile)
    return Inventory(
        tuple(_entry(device, _known(device, profile, spec, config)) for device in cluster.devices),
        tuple(
            LinkEntry(*pair, cluster.links.get(pair, cluster.default_link), pair in cluster.links)
            for pair in cluster.host_pairs
        ),
    )


def _amount(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def _entry(device: Device, profile: str | None = None) -> Entry:
    here = device.host in ("localhost", socket.gethostname())
    local = [cpu_device()] * (device.slot + 1) if device.is_cpu else cuda_devices()
    free_bytes = local[device.slot].free_bytes if here and device.slot < len(local) else None
    return Entry(device.name, device.timed_as, device.memory_bytes, free_bytes, profile)


def _known(device: Device, profile: ProfileTable, spec: ModelSpec, config: RunConfig) -> str:
    """As `prepare.profile_for` will find it."""
    if prepare.covers(profile, spec, config, device.timed_as):
        return MEASURED
    if device.is_cpu:
        return "measured by plan"
    if any((row.device, row.model_name) == (device.timed_as, config.model.name) for row in profile.rows):
        return "measured in part"
    return SPEC_SHEET if device.type in GPU_TYPES else "none"
