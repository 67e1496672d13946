"""Company for a measurement: slots of one CPU share its cores' caches, memory and often their arithmetic units."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hetero_infer.spec import Device

_WORK = """
import os, torch
torch.set_num_threads(1)
x, weight, parent = torch.randn(64, 256), torch.randn(256, 256), os.getppid()
print("working", flush=True)
while os.getppid() == parent:
    for _ in range(200):
        x @ weight
"""


def cpu_neighbours(devices: Sequence[Device], timed_as: str, cores: int) -> int:
    """Devices of one host that compute beside the one measured, as far as there are cores for them."""
    slots = Counter(device.host for device in devices if device.is_cpu and timed_as.startswith("cpu"))
    return max(0, min(max(slots.values(), default=1), cores) - 1)


@contextmanager
def working_neighbours(count: int) -> Iterator[None]:
    """While the block runs, `count` processes multiply matrices, one thread each."""
    command = [sys.executable, "-c", _WORK]
    processes = [  # each in a group of its own: Ctrl-C reaches us alone, and we end them
        subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0) for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()
