import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small products gain nothing from a second thread, and lose much where the machine has other work."""
    torch.set_num_threads(1)
