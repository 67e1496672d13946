"""The seam between the runtime and the kind of device it runs on. All that differs between CPU and CUDA is here."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from hetero_infer.spec import Device

FOREVER = timedelta(days=365)  # an idle stage may wait that long; supervisors notice who died


@dataclass(frozen=True)
class Runtime:
    """Where and in what a stage computes. `dtype` is that of unquantised weights, activations and KV cache."""

    device: torch.device
    dtype: torch.dtype
    backend: str


def runtime_of(device: Device) -> Runtime:
    if device.is_cpu:
        return Runtime(torch.device("cpu"), torch.float32, "gloo")
    return Runtime(torch.device("cuda", device.slot), torch.float16, "nccl")


def join_process_group(device: Device) -> Runtime:
    """Initialise torch.distributed and DeepSpeed for this process. RANK, WORLD_SIZE and the like come from outside."""
    runtime = runtime_of(device)
    os.environ["DS_ACCELERATOR"] = runtime.device.type
    torch.set_num_threads(device.threads)
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)

    import deepspeed  # reads DS_ACCELERATOR when it is imported
    import deepspeed.ops

    # Compiling its shared-memory op takes minutes and is of no use to point-to-point messages.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(runtime.backend, auto_mpi_discovery=False, timeout=FOREVER, verbose=False)
    return runtime


class PeakMemory:
    """What this process held at most since it was made: beyond what imports took on a CPU (Linux), and on a GPU what
    torch allocated there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._before = _status_bytes("VmRSS")

    @property
    def num_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _status_bytes("VmHWM") - self._before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
