"""Company for a measurement: slots of one CPU share its cores' caches, memory and often their arithmetic units."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_WORK = """
import os, torch
torch.set_num_threads(1)
x, weight, parent = torch.randn(64, 256), torch.randn(256, 256), os.getppid()
print("working", flush=True)
while os.getppid() == parent:
    for _ in range(200):
        x @ weight
"""


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
