"""`Cluster`: the devices of a hostfile, in its order, and the links between them."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hetero_infer.spec.errors import InputError, located
from hetero_infer.spec.fields import read_fields
from hetero_infer.spec.files import read_text
from hetero_infer.spec.gpu_type import GIB, GPU_TYPES

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": GIB}
DEVICE_KEYS = ("gpu", "slowdown", "memory", "threads")
DEVICE_FIELDS = {"name": str, "type": str, "memory_bytes": int, "slowdown": float, "threads": int}  # in plan.json
MOST_SLOWDOWN = 1000
MOST_ALPHA_S = 3600
MOST_BYTES = 2**50  # of memory, and a second over a link
MOST_SLOTS = MOST_THREADS = 1024


@dataclass(frozen=True)
class Device:
    """One slot of one host: what a pipeline stage runs on."""

    host: str
    slot: int
    type: str
    memory_bytes: int
    slowdown: float = 1.0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0:
            raise InputError(f"device {self.name}: memory must be positive")
        if not 1 <= self.slowdown <= MOST_SLOWDOWN:
            raise InputError(
                f"device {self.name}: slowdown = {self.slowdown:g}, a device can only be emulated as slower, from 1 to "
                f"{MOST_SLOWDOWN}"
            )
        if not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"device {self.name}: threads = {self.threads}, must be from 1 to {MOST_THREADS}")

    @property
    def name(self) -> str:
        return f"{self.host}:{self.slot}"

    @property
    def is_cpu(self) -> bool:
        return self.type == "cpu"

    @property
    def timed_as(self) -> str:
        """What its seconds are measured as: its type, and a CPU's number of threads where it is not 1."""
        return f"{self.type}-{self.threads}" if self.is_cpu and self.threads > 1 else self.type

    @property
    def is_emulated(self) -> bool:
        """Whether figures from it are of a device that is not really there: slowed, or a share of a CPU's memory."""
        return self.is_cpu or self.slowdown > 1

    @property
    def element_bytes(self) -> int:
        """Of an unquantised weight, an activation or a KV entry: float32 on a CPU, float16 on a GPU."""
        return 4 if self.is_cpu else 2


@dataclass(frozen=True)
class Link:
    """A transfer takes `alpha_s + bytes / bytes_per_s`."""

    alpha_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (0 <= self.alpha_s <= MOST_ALPHA_S and 1 <= self.bytes_per_s <= MOST_BYTES):
            raise InputError(f"link: alpha_s = {self.alpha_s} and bytes_per_s = {self.bytes_per_s} make no link")

    def seconds(self, num_bytes: float) -> float:
        return self.alpha_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Cluster:
    """Devices in hostfile order, which is the order of ranks; a plan has an order of its own."""

    devices: tuple[Device, ...]
    default_link: Link
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.devices:
            raise InputError("a cluster needs at least one device")
        names = [device.name for device in self.devices]
        if len(set(names)) != len(names):
            raise InputError(f"a device stands twice in the cluster: {', '.join(names)}")

    def device(self, name: str) -> Device:
        for device in self.devices:
            if device.name == name:
                return device
        raise InputError(f"no device {name} in the cluster; it has {', '.join(d.name for d in self.devices)}")

    def link(self, source: Device, target: Device) -> Link:
        """The measured link between two hosts, else the default."""
        return self.links.get((source.host, target.host), self.default_link)

    @property
    def host_pairs(self) -> tuple[tuple[str, str], ...]:
        """Every two hosts, both ways, and each host with itself where it has several slots, in hostfile order."""
        slots = Counter(device.host for device in self.devices)
        return tuple((a, b) for a in slots for b in slots if a != b or slots[a] > 1)

    @property
    def unmeasured_pairs(self) -> tuple[tuple[str, str], ...]:
        """Those that get the default link."""
        return tuple(pair for pair in self.host_pairs if pair not in self.links)

    @classmethod
    def from_hostfile(cls, path: Path, default_link: Link) -> "Cluster":
        """Read a DeepSpeed hostfile: ``host slots=N  # gpu=t4,v100-32 slowdown=1,2 memory=4GiB threads=1``."""
        devices: list[Device] = []
        for number, line in enumerate(read_text(path, "hostfile").splitlines(), 1):
            entry, _, comment = line.partition("#")
            if entry.strip():
                devices += _devices_of_line(entry.strip(), comment.strip(), f"hostfile {path}, line {number}")
        if not devices:
            raise InputError(f"hostfile {path}: no host in it; a line reads 'host slots=2  # gpu=t4'")
        with located(f"hostfile {path}"):
            return cls(tuple(devices), default_link)


def parse_bytes(text: str, where: str) -> int:
    """``"400MiB"`` in bytes."""
    match = re.fullmatch(r"([0-9.]+)\s*([KMG]iB)", text.strip())
    if not match:
        raise InputError(f"{where}: {text!r} is no amount of memory; write it like 400MiB or 15GiB")
    num_bytes = _number(match[1], where) * UNITS[match[2]]
    if num_bytes > MOST_BYTES:
        raise InputError(f"{where}: {text.strip()[:20]!r} is more than any device has")
    return int(num_bytes)


def _devices_of_line(entry: str, comment: str, where: str) -> list[Device]:
    match = re.fullmatch(r"(\S+)\s+slots=(\d+)", entry)
    if not match:
        raise InputError(f"{where}: {entry!r} does not read 'host slots=N'")
    host, slots = match[1], int(match[2][:9])
    if not 1 <= slots <= MOST_SLOTS:
        raise InputError(f"{where}: slots={match[2]}, a host has 1 to {MOST_SLOTS}; take a host without any out")
    said: dict[str, list[str]] = {}
    for word in comment.split():
        key, equals, values = word.partition("=")
        if not equals or key not in DEVICE_KEYS:
            raise InputError(f"{where}: {word!r} after the # is none of {', '.join(DEVICE_KEYS)}=…")
        if key in said:
            raise InputError(f"{where}: {key} stands there twice; give one value, or one per slot with commas")
        said[key] = _one_per_slot(values.split(","), slots, f"{where}: {key}")
    if "gpu" not in said:
        raise InputError(
            f"{where}: the type of {host}'s devices is not said; add '# gpu=t4' (or gpu=cpu); 'hetero-infer devices' "
            f"on {host} prints its line"
        )
    return [_device(host, slot, {key: values[slot] for key, values in said.items()}, where) for slot in range(slots)]


def _one_per_slot(values: list[str], slots: int, where: str) -> list[str]:
    if len(values) == 1:
        return values * slots
    if len(values) != slots:
        raise InputError(f"{where} has {len(values)} values for {slots} slots; give one, or one per slot")
    return values


def _device(host: str, slot: int, said: dict[str, str], where: str) -> Device:
    type_name = said["gpu"]
    if "memory" in said:
        memory_bytes = parse_bytes(said["memory"], where)
    elif type_name in GPU_TYPES:
        memory_bytes = GPU_TYPES[type_name].memory_bytes
    elif type_name == "cpu":
        raise InputError(f"{where}: say how much memory a cpu device may use, like memory=4GiB")
    else:
        raise InputError(
            f"{where}: gpu={type_name} is not known; known: cpu, {', '.join(GPU_TYPES)}; any other name needs its "
            f"memory, like 'gpu={type_name} memory=24GiB'"
        )
    slowdown, threads = (_number(said.get(key, "1"), f"{where}: {key}") for key in ("slowdown", "threads"))
    if threads != int(threads):
        raise InputError(f"{where}: threads = {threads} is not a whole number")
    with located(where):
        return Device(host, slot, type_name, memory_bytes, slowdown, int(threads))


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise InputError(f"{where}: {text!r} is not a number") from None
    if not math.isfinite(number):
        raise InputError(f"{where}: {text!r} is not a finite number")
    return number


def device_to_json(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "type": device.type,
        "memory_bytes": device.memory_bytes,
        "slowdown": device.slowdown,
        "threads": device.threads,
    }


def device_from_json(content: Any, where: str = "device") -> Device:
    said = read_fields(content, DEVICE_FIELDS, where)
    host, _, slot = said.pop("name").rpartition(":")
    if not host or not slot.isdecimal():
        raise InputError(f"{where}: name = {content['name']!r} does not read 'host:slot'")
    with located(where):
        return Device(host, int(slot), **said)
