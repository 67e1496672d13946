"""This host's network interfaces and their IPv4 addresses (Linux)."""

import contextlib
import fcntl
import socket
import struct

SIOCGIFADDR = 0x8915


def interface_addresses() -> dict[str, str]:
    """Interface to address; the first one where it has several, and none of those that have no address."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode())
                found[name] = socket.inet_ntoa(fcntl.ioctl(probe, SIOCGIFADDR, request)[20:24])
    return found


def interface_of(address: str) -> str | None:
    return next((name for name, own in interface_addresses().items() if own == address), None)
