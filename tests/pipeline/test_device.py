import sys

import pytest
import torch

from hetero_infer.pipeline.device import PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_counts_what_was_held_and_given_back() -> None:
    watch = PeakMemory(torch.device("cpu"))
    held = torch.ones(100 * 2**20, dtype=torch.uint8)
    del held
    assert 95 * 2**20 <= watch.num_bytes < 110 * 2**20  # a few pages may have been there before
    assert PeakMemory(torch.device("cpu")).num_bytes < 4 * 2**20
