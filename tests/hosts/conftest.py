"""The files of the runs, made before there are hosts that see them; then a fresh cluster for each test."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hetero_infer.spec import Fleet
from tests.hosts.cluster import NAMES, Cluster, NoCluster, check_machine
from tests.hosts.running import Run
from tests.prepared import RunFiles, TinyModel, write_batch
from tests.supervisor.fake_worker import HANG


@dataclass(frozen=True)
class Prepared:
    """`three` has a slot on each host, and its quantised layers are on every disk. `four` has two slots on the first
    host, `replicas` share them, and `unplanned` has nothing made yet, and memory that takes all three hosts."""

    model: TinyModel
    three: RunFiles
    four: RunFiles
    replicas: RunFiles
    unplanned: RunFiles
    batch: Path
    long_batch: Path
    hanging_batch: Path


def hostfile(*slots: int, names: tuple[str, ...] = NAMES, memory: str = "32MiB") -> str:
    lines = zip(names, slots, strict=True)
    return "".join(f"{name} slots={count}  # gpu=cpu memory={memory}\n" for name, count in lines)


@pytest.fixture(scope="session")
def machine() -> None:
    try:
        check_machine()
    except NoCluster as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def prepared(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    path = tmp_path_factory.mktemp("hosts")
    model = TinyModel(path / "tiny")
    three = model.write_files(path / "three", hostfile(1, 1, 1), layers_per_stage=(3, 1, 2))
    model.quantise(three)
    replicas = model.write_files(path / "replicas", hostfile(2, 1, 1), layers_per_stage=(2, 1, 1, 2))
    first, second, third = NAMES
    cuts = {f"{third}:0": 2, f"{first}:1": 4}, {f"{second}:0": 5, f"{first}:0": 1}
    Fleet(tuple(model.plan(replicas, cut, batch_size=2) for cut in cuts)).save(replicas.plan)
    return Prepared(
        model,
        three,
        model.write_files(path / "four", hostfile(2, 1, 1), layers_per_stage=(2, 1, 1, 2)),
        replicas,
        model.write_files(path / "unplanned", hostfile(1, 1, 1, memory="0.6MiB"), layers_per_stage=(3, 1, 2)),
        write_batch(path / "in.jsonl"),
        write_batch(path / "long.jsonl", [[1, 2, 3]] * 4000, [24] * 4000),
        write_batch(path / "hanging.jsonl", [[1, 2], [HANG]], [2, 2]),
    )


@pytest.fixture
def cluster(prepared: Prepared) -> Iterator[Cluster]:
    with Cluster() as hosts:
        yield hosts


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Iterator[Run]:
    started = Run(cluster, tmp_path / "said")
    try:
        yield started
    finally:
        started.clean_up()
