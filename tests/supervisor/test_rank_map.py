"""Replicas, stage order, rank order and hostfile order, and hosts that are not those of the plan."""

import pytest
from running import make_devices, make_fleet

from hetero_infer.spec import InputError
from hetero_infer.supervisor.rank_map import Joined, RankMap, check_hosts

DEVICES = make_devices(1, 2, hosts=("node-a", "node-b"))


def joined(*hosts: str, nodes: str = "") -> list[Joined]:
    return [Joined(rank, host, nodes[rank : rank + 1], 100 + rank) for rank, host in enumerate(hosts)]


def test_stages_turn_into_ranks_by_the_hostfile() -> None:
    rank_map = RankMap.of(make_fleet(DEVICES, ["node-b:1", "node-a:0"]), joined("node-a", "node-b", "node-b"))
    assert rank_map.worlds == ((2, 0),) and rank_map.leaders == (2,)
    assert [rank_map.seat_of(rank) for rank in range(3)] == [(0, 1), None, (0, 0)]


def test_each_replica_is_a_world_of_its_own() -> None:
    fleet = make_fleet(make_devices(2, 3, hosts=("a", "b")), ["b:2", "a:1"], ["b:0", "a:0"])
    rank_map = RankMap.of(fleet, joined("a", "a", "b", "b", "b"))
    assert rank_map.worlds == ((4, 1), (2, 0)) and rank_map.leaders == (4, 2)
    assert rank_map.workers == (4, 1, 2, 0)
    assert [rank_map.seat_of(rank) for rank in range(5)] == [(1, 1), (0, 1), (1, 0), None, (0, 0)]


def test_the_first_supervisor_with_a_stage_prepares_for_its_host_whichever_replica_it_is_of() -> None:
    fleet = make_fleet(DEVICES, ["node-b:1", "node-a:0"], ["node-b:0"])
    prepared = RankMap.of(fleet, joined("a", "b", "b")).devices_to_prepare
    assert prepared == {0: ("node-a:0",), 1: ("node-b:0", "node-b:1")}


def test_names_may_differ_from_the_hostfile() -> None:
    check_hosts(DEVICES, joined("10.0.0.1", "vm", "vm"))
    check_hosts(make_devices(2), joined("vm", "vm"))


def test_the_order_of_joining_does_not_matter() -> None:
    check_hosts(DEVICES, joined("node-a", "node-b", "node-b")[::-1])


def test_two_hosts_of_one_name_are_told_apart_by_the_launchers_number() -> None:
    check_hosts(DEVICES, joined("vm", "vm", "vm", nodes="011"))
    with pytest.raises(InputError, match="joined are vm: 3"):
        check_hosts(DEVICES, joined("vm", "vm", "vm"))


def test_slots_must_agree_host_by_host() -> None:
    with pytest.raises(InputError, match="node-a: 1, node-b: 2, those that joined are x: 2, y: 1"):
        check_hosts(DEVICES, joined("x", "x", "y"))


def test_hosts_in_another_order_are_refused() -> None:
    devices = make_devices(1, 1, hosts=("node-a", "node-b"))
    with pytest.raises(InputError, match="node-b joined where the plan has node-a"):
        check_hosts(devices, joined("node-b.example.org", "node-a.example.org"))
