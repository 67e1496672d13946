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


def device_classes(cluster: Cluster) -> tuple[DeviceClass, ...]:
    """In the order of the hostfile."""
    has_one_link = only_link(cluster) is not None
    members: dict[Device, list[Device]] = {}
    for device in cluster.devices:
        key = replace(device, slot=0, host="" if has_one_link else device.host)
        members.setdefault(key, []).append(device)
    return tuple(DeviceClass(tuple(devices)) for devices in members.values())


def only_link(cluster: Cluster) -> Link | None:
    """The link that any two devices have between them; None where links differ."""
    hosts = dict.fromkeys(device.host for device in cluster.devices)
    links = {cluster.links.get(pair, cluster.default_link) for pair in cluster.host_pairs}
    if len(links) > 1:
        return None
    return links.pop() if links else cluster.default_link if len(hosts) == 1 else None


def link_between(cluster: Cluster, source: DeviceClass, target: DeviceClass) -> Link:
    """Of a device of `source` and another of `target`."""
    return cluster.link(source.example, target.devices[-1])
