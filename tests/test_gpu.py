"""The checks for a GPU, as far as a processor goes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

import gpu
from programs import Perceptrons

TINY = Perceptrons(3, (4,), 2, 6, num_data=48)
CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_checks_and_the_times_of_a_processor():
    found = gpu.checks(TINY, CPU)
    assert found.pop("resumes_to_the_same_bits")
    for engine, row in found.items():
        assert row["recorded"] is (engine != "eager")
        assert row["same_random_state"]
        assert row["largest_relative_difference"] < (1e-5 if engine == "compiled" else 1e-12)
    times = gpu.measure(TINY, CPU, rounds=2)
    assert all(row["median_ms"] > 0 for row in times.values())
