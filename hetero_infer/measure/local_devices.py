"""The devices of this machine, as its drivers know them."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from hetero_infer.spec.gpu_type import gpu_type_of


@dataclass(frozen=True)
class LocalDevice:
    """`type` is one of the hostfile's names: ``cpu``, a `GpuType`'s or, for another card, the driver's name."""

    description: str
    type: str
    memory_bytes: int
    free_bytes: int


def cuda_devices() -> list[LocalDevice]:
    """In CUDA's order, which is that of a hostfile's slots. None without torch, or with torch for CPUs."""
    try:
        import torch
    except ImportError:
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        free_bytes, memory_bytes = torch.cuda.mem_get_info(index)
        gpu = gpu_type_of(name, memory_bytes)
        found.append(LocalDevice(name, gpu.name if gpu else _as_type(name), memory_bytes, free_bytes))
    return found


def cpu_device(meminfo: Path = Path("/proc/meminfo")) -> LocalDevice:
    """All of this machine's cores and memory as one device."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    memory_bytes, free_bytes = (int(fields[name].split()[0]) * 2**10 for name in ("MemTotal", "MemAvailable"))
    return LocalDevice(f"{cpu_name()}, {os.cpu_count()} cores", "cpu", memory_bytes, free_bytes)


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine() or "unknown")


def _as_type(driver_name: str) -> str:
    """``"NVIDIA GeForce RTX 5090"`` as one word that a hostfile can hold."""
    return "-".join(driver_name.lower().replace(",", " ").split())
