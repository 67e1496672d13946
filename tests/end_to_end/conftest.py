"""The tiny model with a plan over three emulated devices and its quantised layers, made once; a folder for each run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.running import Run
from tests.prepared import RunFiles, TinyModel

HOSTFILE = "localhost slots=3  # gpu=cpu slowdown=1,1.5,2 memory=32MiB threads=1\n"


class Prepared:
    """What all runs share: the model, their `files`, and the answers of one process."""

    def __init__(self, path: Path) -> None:
        self.model = model = TinyModel(path / "tiny")
        self.files: RunFiles = model.write_files(path, HOSTFILE, layers_per_stage=(3, 1, 2))
        model.quantise(self.files)
        self.expected = model.greedy(self.files.checkpoint)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started = Run(tmp_path)
    try:
        yield started
    finally:
        started.clean_up()
