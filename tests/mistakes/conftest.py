"""A run in which all is right, made once; each mistake gets a copy of it to spoil."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_cli import Run


@pytest.fixture(scope="session")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tmp_path_factory.mktemp("right"))
    assert run("plan") == 0
    return run.path


@pytest.fixture
def folder(right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Relative paths start there."""
    folder = tmp_path / "run"
    shutil.copytree(right, folder)
    config = folder / "run.toml"
    config.write_text(config.read_text().replace(str(right), str(folder)))
    monkeypatch.chdir(folder)
    yield folder
