from hetero_infer.measure.neighbours import cpu_neighbours
from hetero_infer.measure.survey import Survey
from hetero_infer.spec import Device


def device(host: str, slot: int, type_name: str, threads: int = 1) -> Device:
    return Device(host, slot, type_name, 2**30, threads=threads)


SURVEY = Survey(
    (
        device("a", 0, "v100-32"),
        device("b", 0, "t4"),
        device("b", 1, "t4"),
        device("b", 2, "p100"),
        device("c", 0, "t4"),
    )
)


def test_each_device_type_is_timed_once_by_the_first_that_has_it() -> None:
    assert SURVEY.timers == {"v100-32": 0, "t4": 1, "p100": 3}
    assert Survey((device("a", 0, "cpu"), device("a", 1, "cpu", 2), device("a", 2, "cpu", 2))).timers == {
        "cpu": 0,
        "cpu-2": 1,
    }


def test_every_two_hosts_are_timed_both_ways_and_several_slots_of_one_as_well() -> None:
    assert SURVEY.pairs == {
        ("a", "b"): (0, 1),
        ("a", "c"): (0, 4),
        ("b", "a"): (1, 0),
        ("b", "b"): (1, 2),
        ("b", "c"): (1, 4),
        ("c", "a"): (4, 0),
        ("c", "b"): (4, 1),
    }
    assert Survey((device("a", 0, "cpu"),)).pairs == {}


def test_neighbours_are_the_other_slots_of_a_cpu_as_far_as_there_are_cores() -> None:
    cpus = [device("a", slot, "cpu") for slot in range(3)]
    assert [cpu_neighbours(cpus, "cpu", cores) for cores in (1, 2, 8)] == [0, 1, 2]
    assert cpu_neighbours(SURVEY.devices, "t4", 8) == 0
