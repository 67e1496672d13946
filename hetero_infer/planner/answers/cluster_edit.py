"""A cluster with devices added or taken away, as `whatif` asks for it: ``a100-40:1@node-b=32GiB``, ``t4:2``."""

import re
from dataclasses import replace

from hetero_infer.spec.cluster import MOST_SLOTS, Cluster, Device, parse_bytes
from hetero_infer.spec.errors import InputError
from hetero_infer.spec.gpu_type import GPU_TYPES

ADDITION = re.compile(r"(?P<type>[^\s:@=]+):(?P<count>\d{1,9})(?:@(?P<host>[^\s:@=]+))?(?:=(?P<memory>\S+))?")


def with_added(cluster: Cluster, text: str) -> Cluster:
    """With the devices of ``TYPE:N[@HOST][=MEMORY]`` behind the others.

    A device of a type that is there is like the first of them, any other has the memory of the spec sheet. Without a
    host they stand on a new one, with the default link to all others.
    """
    said = ADDITION.fullmatch(text)
    if not said or not 1 <= int(said["count"]) <= MOST_SLOTS:
        raise InputError(f"--add {text}: write TYPE:N, TYPE:N@HOST or either with its memory, like t4:2@node-b=12GiB")
    host = said["host"] or f"new-{said['type']}"
    first_slot = 1 + max((device.slot for device in cluster.devices if device.host == host), default=-1)
    pattern = _like(cluster, said["type"], said["memory"], text)
    added = tuple(replace(pattern, host=host, slot=first_slot + k) for k in range(int(said["count"])))
    return replace(cluster, devices=(*cluster.devices, *added))


def without(cluster: Cluster, text: str) -> Cluster:
    """Without one device by its name, or without the last N of a type (``TYPE:N``)."""
    names = [device.name for device in cluster.devices]
    if text in names:
        dropped = {text}
    else:
        wanted, _, count = text.rpartition(":")
        of_type = [device.name for device in cluster.devices if device.type == wanted]
        if not count.isdecimal() or not 1 <= int(count) <= len(of_type):
            raise InputError(
                f"--drop {text}: write a device or TYPE:N, no more than there are; the cluster has "
                f"{', '.join(f'{device.name} ({device.type})' for device in cluster.devices)}"
            )
        dropped = set(of_type[-int(count) :])
    if len(dropped) == len(names):
        raise InputError(f"--drop {text}: no device would be left")
    return replace(cluster, devices=tuple(device for device in cluster.devices if device.name not in dropped))


def _like(cluster: Cluster, type_name: str, memory: str | None, text: str) -> Device:
    same = next((device for device in cluster.devices if device.type == type_name), None)
    if (type_name == "cpu") != cluster.devices[0].is_cpu:
        raise InputError(f"--add {text}: CPUs and GPUs in one pipeline are not supported; add one of the same kind")
    if memory:
        memory_bytes = parse_bytes(memory, f"--add {text}")
    elif same:
        memory_bytes = same.memory_bytes
    elif type_name in GPU_TYPES:
        memory_bytes = GPU_TYPES[type_name].memory_bytes
    else:
        raise InputError(f"--add {text}: nobody knows the memory of a {type_name}; say it, like {type_name}:1=24GiB")
    return replace(same or Device("new", 0, type_name, memory_bytes), memory_bytes=memory_bytes)
