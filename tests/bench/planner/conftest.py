"""The folder of shared data, which the benches read and the product does not."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def shared() -> Path:
    folder = Path(os.environ.get("HETERO_INFER_SHARED", "../shared"))
    if not (folder / "data" / "llm_pq").is_dir():
        pytest.skip(f"{folder}/data is not there; HETERO_INFER_SHARED names the folder of shared data")
    return folder
