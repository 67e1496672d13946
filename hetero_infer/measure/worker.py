"""The measuring worker: one process per slot. Started by a supervisor, which it obeys over its channel.

python -m hetero_infer.measure.worker --plan devices.json --config run.toml --device localhost:0

In: the cluster's devices by rank, and its own. Out: a `measured` event for each link and each device
type that it measured. One measurement runs at a time, so that none disturbs another.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from hetero_infer.measure.neighbours import cpu_neighbours
from hetero_infer.measure.survey import Survey
from hetero_infer.spec import HeteroInferError, ModelSpec, RunConfig
from hetero_infer.spec.cluster import device_from_json
from hetero_infer.spec.files import read_text
from hetero_infer.spec.profile import row_to_json
from hetero_infer.supervisor.channel import WorkerChannel

ANSWER_WITHIN = timedelta(seconds=120)  # a connection, or a message: a firewall or a wrong MTU swallows them
FOREVER = timedelta(days=365)  # for one's turn, which may be after long measurements; supervisors notice who died


def main() -> int:
    channel = WorkerChannel.from_environment()  # first: its heartbeat covers what takes long below
    parser = argparse.ArgumentParser(description="Measures one slot of a cluster; a supervisor starts it.")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--device", required=True)
    args = parser.parse_args()
    devices = tuple(map(device_from_json, json.loads(read_text(args.plan, "devices"))))
    rank = [device.name for device in devices].index(args.device)
    try:
        _work(channel, Survey(devices), RunConfig.load(args.config), rank)
    except Exception as error:
        if not isinstance(error, HeteroInferError):
            traceback.print_exc()
        channel.send({"event": "failed", "error": str(error) or repr(error)})
        return error.exit_code if isinstance(error, HeteroInferError) else 1
    return 0


def _work(channel: WorkerChannel, survey: Survey, config: RunConfig, rank: int) -> None:
    import torch

    from hetero_infer.measure.layer_timer import measure_layers
    from hetero_infer.measure.links import answer_messages, time_messages

    own, backend = survey.devices[rank], "gloo" if any(device.is_cpu for device in survey.devices) else "nccl"
    device = torch.device("cpu") if backend == "gloo" else torch.device("cuda", own.slot)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = connect(backend, rank, len(survey.devices))
    channel.send({"event": "ready"})
    turns = Turns(store)
    for pair, (sender, receiver) in survey.pairs.items():
        with turns.next(is_mine=rank in (sender, receiver), ends_it=rank == sender) as is_mine:
            if is_mine and rank == sender:
                channel.send({"event": "measured", "link": pair, "points": time_messages(receiver, device)})
            elif is_mine:
                answer_messages(sender, device)
    spec = ModelSpec.from_folder(config.model)
    config = config.for_model(spec)
    for timed_as, timer in survey.timers.items():
        with turns.next(is_mine=rank == timer, ends_it=True) as is_mine:
            if is_mine:
                profile = measure_layers(
                    spec,
                    config.model.name,
                    timed_as,
                    config.choices,
                    config.workload,
                    own.threads,
                    cpu_neighbours(survey.devices, timed_as, os.cpu_count() or 1),
                    own.slot,
                    progress=True,
                    embedding_choices=config.embedding_choices,
                    head_choices=config.head_choices,
                )
                rows = [row_to_json(row) for row in profile.rows]
                channel.send({"event": "measured", "device": timed_as, "rows": rows, "header": dict(profile.header)})
    torch.distributed.destroy_process_group()
    _leave_together(channel, store, rank, len(survey.devices))


def connect(backend: str, rank: int, world_size: int) -> Any:
    """Every worker with every other; gives the store they share, which rank 0 keeps."""
    import torch.distributed

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = torch.distributed.TCPStore(address, port, world_size, is_master=rank == 0, timeout=ANSWER_WITHIN)
        torch.distributed.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=ANSWER_WITHIN
        )
    except RuntimeError as error:
        raise HeteroInferError(
            f"its worker found no way to all others by {backend} and {address}:{port} within {ANSWER_WITHIN.seconds} s "
            f"({str(error).splitlines()[0]}); the hosts must reach each other on every port"
        ) from error
    return store


class Turns:
    """One measurement after the other, whichever ranks make it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._number = 0

    @contextmanager
    def next(self, is_mine: bool, ends_it: bool) -> Iterator[bool]:
        """Wait until the one before has ended, if this one `is_mine`; say so when it `ends_it`."""
        if is_mine and self._number > 0:
            self._store.wait([f"turn {self._number - 1}"], FOREVER)
        yield is_mine
        if is_mine and ends_it:
            self._store.set(f"turn {self._number}", "")
        self._number += 1


def _leave_together(channel: WorkerChannel, store: Any, rank: int, world_size: int) -> None:
    """When rank 0 is told to; it keeps the store, and so leaves last."""
    if rank > 0:
        store.wait(["leave"], FOREVER)
        store.set(f"left {rank}", "")
        return
    channel.receive()
    store.set("leave", "")
    store.wait([f"left {other}" for other in range(1, world_size)], FOREVER)


if __name__ == "__main__":
    sys.exit(main())
