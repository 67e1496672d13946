"""`DeviceClass`: devices that a plan may exchange for each other, so that no order of them is tried twice."""

from dataclasses import dataclass, replace

from hetero_infer.spec.cluster import Cluster, Device, Link


@dataclass(frozen=True)
class DeviceClass:
    """Alike in all that costs time or memory; where links differ by host, on the same host."""

    devices: tuple[Device, ...]

    @property
    def example(self) -> Device:
        return self.devices[0]


def device_classes(cluster: Cluster, *, by_host: bool) -> tuple[DeviceClass, ...]:
    """In the order of the hostfile; without `by_host` also devices of several hosts are one class."""
    members: dict[Device, list[Device]] = {}
    for device in cluster.devices:
        key = replace(device, slot=0, host=device.host if by_host else "")
        members.setdefault(key, []).append(device)
    return tuple(DeviceClass(tuple(devices)) for devices in members.values())


def has_one_link(cluster: Cluster) -> bool:
    """Whether any two devices have the same link between them."""
    return len({cluster.links.get(pair, cluster.default_link) for pair in cluster.host_pairs}) <= 1


def best_link(cluster: Cluster, source: DeviceClass, target: DeviceClass) -> Link:
    """From a device of `source` to another of `target`: no pair of them is faster for any message."""
    pairs = {(a.host, b.host) for a in source.devices for b in target.devices if a != b}
    links = {cluster.links.get(pair, cluster.default_link) for pair in pairs} or {cluster.default_link}
    return Link(min(link.alpha_s for link in links), max(link.bytes_per_s for link in links))
