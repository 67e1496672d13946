"""A folder to run supervisors in; what a failing test leaves running is ended by pid."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import RunFolder


@pytest.fixture
def run_folder(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path)
    try:
        yield folder
    finally:
        folder.clean_up()
