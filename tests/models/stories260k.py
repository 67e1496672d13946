"""The checkpoint stories260K, where the shared data is."""

import os
from pathlib import Path

import pytest

from hetero_infer.bench.quality.stories260k import convert, pieces

SHARED = Path(os.environ.get("HETERO_INFER_SHARED", "../shared"))
SOURCE = SHARED / "data" / "models" / "stories260K"


def stories_folder(target: Path) -> Path:
    """Write the model to `target`, or skip the test where the file is not there."""
    binary = SOURCE / "stories260K.bin"
    if not binary.exists():
        pytest.skip(f"{binary} is not there; HETERO_INFER_SHARED names the folder of shared data")
    return convert(binary.read_bytes(), target)


def decode(token_ids: list[int]) -> str:
    names = pieces((SOURCE / "tok512.bin").read_bytes())
    return b"".join(names[token] for token in token_ids).decode().strip()
