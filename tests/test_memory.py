"""Arrays that lie in files: what is read of them does not pile up in memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from pyro_vae import memory
from pyro_vae.datasets.values import chunks

STATUS = Path("/proc/self/status")
SIZE = 64 * 2**20


def resident() -> int:
    """Return the bytes of files that this process holds in memory."""
    words = STATUS.read_text().split()
    return 1024 * int(words[words.index("RssFile:") + 1])


@pytest.mark.skipif(
    not (STATUS.exists() and hasattr(mmap, "MADV_DONTNEED")), reason="Linux tells and drops pages"
)
@pytest.mark.parametrize("is_known", [True, False])
def test_pages_that_were_read_are_dropped(is_known, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.ones(SIZE, np.uint8).reshape(-1, 4096))
    monkeypatch.setattr(memory, "MAPPED_BYTES", 2**22)
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    if is_known:
        memory.mapped(array)
    before = resident()
    total = sum(int(rows.sum(dtype=np.int64)) for _, rows in chunks(array, 2**20))
    assert total == SIZE  # what is dropped is read again from the file
    assert int(array.sum(dtype=np.int64)) == SIZE
    for _ in chunks(array, 2**20):
        pass
    assert (resident() - before < SIZE / 4) == is_known
