"""`Place`: which supervisor this process is, and where the first one listens. In: what the launcher left us.

DeepSpeed sets RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. Open MPI sets OMPI_COMM_WORLD_* and no address: MPI lives
for one broadcast of it, then it is finalised, so that later a process may end as it must. With neither, we are alone.
LOCAL_RANK is not used: DeepSpeed computes it as `rank % slots of this host`, which is wrong where hosts differ in
slots. `rank_map` counts instead.
"""

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from hetero_infer.spec import InputError
from hetero_infer.supervisor.interfaces import interface_addresses

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """`node` tells apart hosts of one name where the launcher can. `addresses` are tried in turn; `listener` is rank
    0's."""

    rank: int
    world_size: int
    was_launched: bool = True
    node: str = ""
    addresses: tuple[tuple[str, int], ...] = ()
    listener: socket.socket | None = None

    @property
    def host(self) -> str:
        return socket.gethostname()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Place":
        if "OMPI_COMM_WORLD_RANK" in environ:
            return _from_open_mpi(environ)
        if "RANK" in environ and "WORLD_SIZE" in environ:
            return _from_deepspeed(environ)
        return cls(rank=0, world_size=1, was_launched=False)


def _from_deepspeed(environ: Mapping[str, str]) -> Place:
    rank, world_size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    if world_size == 1:
        return Place(rank, world_size)
    try:
        address = (environ["MASTER_ADDR"], int(environ["MASTER_PORT"]))
    except KeyError as error:
        raise InputError(f"the launcher set RANK and WORLD_SIZE, but not {error}") from None
    listener = _listen(address) if rank == 0 else None
    if listener and is_loopback(own := listener.getsockname()[0]) and int(environ.get("CROSS_SIZE", 1)) > 1:
        raise InputError(
            f"--master_addr {address[0]} is {own} on {socket.gethostname()}, which no other host can reach; give the "
            "launcher the address that this host has in the network"
        )
    return Place(rank, world_size, node=environ.get("CROSS_RANK", ""), addresses=(address,), listener=listener)


def _from_open_mpi(environ: Mapping[str, str]) -> Place:
    rank, world_size = int(environ["OMPI_COMM_WORLD_RANK"]), int(environ["OMPI_COMM_WORLD_SIZE"])
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise InputError(f"started by mpirun, but mpi4py cannot be imported ({error}); pip install mpi4py") from error
    listener, addresses = None, None
    if rank == 0 and world_size > 1:
        one_host = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == environ["OMPI_COMM_WORLD_SIZE"]
        listener = _listen((LOOPBACK if one_host else "", 0))
        port = listener.getsockname()[1]
        addresses = tuple((address, port) for address in ([LOOPBACK] if one_host else _own_addresses()))
    addresses = MPI.COMM_WORLD.bcast(addresses, root=0)
    MPI.Finalize()
    return Place(rank, world_size, addresses=addresses or (), listener=listener)


def _listen(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family)
    except OSError as error:
        raise InputError(
            f"rank 0 cannot listen on {address[0]}:{address[1]} ({error.strerror or error}); "
            "give the launcher another --master_port, or an address of this host as --master_addr"
        ) from error


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _own_addresses() -> list[str]:
    """Addresses that other hosts may reach us at: the one of the default route first. Not those of our name: Debian
    writes 127.0.1.1 for it."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks for a route
            found.append(probe.getsockname()[0])
    found += interface_addresses().values()
    return list(dict.fromkeys(address for address in found if not is_loopback(address))) or [LOOPBACK]
