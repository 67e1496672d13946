from pathlib import Path

import pytest
import torch

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import CalibrationWindows
from tests.tiny_model import write_tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(write_tiny_model(tmp_path / "tiny"))


@pytest.fixture
def windows() -> CalibrationWindows:
    return CalibrationWindows(torch.randint(99, (4, 32), generator=torch.Generator().manual_seed(0)))
