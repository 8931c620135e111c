"""Arrays that lie in files: what is read of them does not pile up in memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae import memory
from pyro_vae.cli.data_record import row_hashes
from pyro_vae.datasets.data import Data, joined
from pyro_vae.datasets.values import chunks
from pyro_vae.engine import data as engine_data
from pyro_vae.engine.data import representative
from pyro_vae.engine.observations import AsFloat

STATUS = Path("/proc/self/status")
SIZE = 32 * 2**20


def resident() -> int:
    """Return the bytes of files that this process holds in memory."""
    words = STATUS.read_text().split()
    return 1024 * int(words[words.index("RssFile:") + 1])


def scanned(array: np.ndarray) -> None:
    for _, rows in chunks(array, 2**20):
        rows.max()


def represented(array: np.ndarray) -> None:
    representative(Data(torch.from_numpy(array)), AsFloat())  # pages around each of the rows


def put_together(array: np.ndarray) -> None:
    x = torch.from_numpy(array)
    joined([Data(x[: len(x) // 2]), Data(x[len(x) // 2 :])])


READERS = {
    "in chunks": scanned,
    "a few of the rows": represented,
    "parts together": put_together,
    "hashes of rows": lambda array: row_hashes(torch.from_numpy(array)),
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.skipif(
    not (STATUS.exists() and hasattr(mmap, "MADV_DONTNEED")), reason="Linux tells and drops pages"
)
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_pages_that_were_read_are_dropped(read, is_known, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.ones(SIZE, np.uint8).reshape(-1, 1024))
    for module in (memory, engine_data):
        monkeypatch.setattr(module, "MAPPED_BYTES", 2**22)
    monkeypatch.setattr(engine_data, "_REPRESENTATIVE_ROWS", 1024)
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    if is_known:
        memory.mapped(array)
    before = resident()
    read(array)
    assert (resident() - before < SIZE / 4) == is_known
    total = sum(int(rows.sum(dtype=np.int64)) for _, rows in chunks(array, 2**20))
    assert total == SIZE  # what is dropped is read again from the file


def test_parts_are_joined_in_order_and_type():
    parts = [torch.arange(6).view(3, 2), torch.rand(2, 2)]
    assert torch.equal(joined([*map(Data, parts)]).x, torch.cat(parts))
