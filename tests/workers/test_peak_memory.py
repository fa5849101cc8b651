"""The measured memory of a pack: what is taken while it trains shows, and is in the record of its trials."""

from __future__ import annotations

import numpy as np
import pytest

from workers.peak_memory import PROC, PeakMemory


@pytest.mark.skipif(not (PROC / "status").exists(), reason="only Linux says how much memory a process takes")
def test_what_is_taken_and_given_back_shows_in_the_peak() -> None:
    earlier = np.ones(20_000_000)  # 160 MB before the measurement, which must not count where the mark can be set back
    del earlier
    memory = PeakMemory("cpu")
    for members in (3, 4, 2):
        memory.trained_together(members)
    taken = np.ones(10_000_000)
    del taken
    found = memory.to_json()
    assert (found["members"], found["device"]) == (4, "cpu")
    assert found["peak_bytes"] - found["before_bytes"] == pytest.approx(80e6, abs=40e6)
