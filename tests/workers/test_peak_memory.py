"""The measured memory of a pack: what is taken while it trains shows, and is in the record of its trials."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from workers.peak_memory import PROC

PACK = """
import json
import numpy as np
from workers.peak_memory import PeakMemory
earlier = np.ones(20_000_000)  # 160 MB before the measurement, which must not count where the mark can be set back
del earlier
memory = PeakMemory("cpu")
for members in (3, 4, 2):
    memory.trained_together(members)
taken = np.ones(10_000_000)
del taken
print(json.dumps(memory.to_json()))
"""


@pytest.mark.skipif(not (PROC / "status").exists(), reason="only Linux says how much memory a process takes")
def test_what_is_taken_and_given_back_shows_in_the_peak() -> None:
    """In a process of its own: what other tests gave back to the allocator would be taken again without a trace."""
    found = json.loads(subprocess.run([sys.executable, "-c", PACK], check=True, capture_output=True, text=True).stdout)
    assert (found["members"], found["device"]) == (4, "cpu")
    assert found["peak_bytes"] - found["before_bytes"] == pytest.approx(80e6, abs=40e6)
