"""Metrics are strict JSON, survive a kill, and average to what numpy says."""

from __future__ import annotations

import errno
import json
import math
import os
import sys

import numpy as np
import pytest
import torch

from pyro_vae.engine import checkpoint, metrics
from pyro_vae.engine.metrics import Mean, MetricsFile, read, tensorboard, truncate


def strictly(line: str) -> dict:
    def refuse(name):
        raise AssertionError(name)

    return json.loads(line, parse_constant=refuse)


@pytest.fixture
def path(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"command": "train"})
    for step in range(1, 5):
        file.append({"step": step, "elbo_nats": -100.1 / step, "note": "é\n"})
    return file.path


def test_records_come_back_as_they_were(path):
    records = read(path)
    assert records[0] == {"command": "train"}
    assert records[1:] == [
        {"step": step, "elbo_nats": -100.1 / step, "note": "é\n"} for step in range(1, 5)
    ]
    assert len(path.read_text().splitlines()) == 5


def test_what_is_not_finite_is_null_and_named(tmp_path):
    file = MetricsFile(tmp_path / "m.jsonl")
    file.append({"step": 1, "a": math.nan, "b": np.float32(-math.inf), "c": torch.tensor(0.5)})
    file.append({"step": np.int64(2), "d": None, "e": True})
    first, second = map(strictly, file.path.read_text().splitlines())
    assert first == {"step": 1, "a": None, "b": None, "c": 0.5, "nonfinite": ["a", "b"]}
    assert second == {"step": 2, "d": None, "e": True}


def test_a_line_torn_anywhere_is_left_out_and_repaired(path):
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert [record.get("step") for record in read(path)] == [None, 1, 2, 3]
        truncate(path, step=4)
        assert path.read_bytes() == whole[:start]
    MetricsFile(path).append({"step": 4})
    assert read(path)[-1] == {"step": 4}


def test_a_whole_last_line_without_its_end_is_kept(path):
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    truncate(path, step=4)
    MetricsFile(path).append({"step": 5})
    assert [record.get("step") for record in read(path)] == [None, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("bad", [b'{"step": 2, "a"', b"[1]", b"\xff\xfe", b""])
def test_a_bad_line_in_the_middle_is_an_error_with_its_number(path, bad):
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], bad, *lines[2:]]) + b"\n")
    before = path.read_bytes()
    for action in (read, lambda where: truncate(where, step=1)):
        with pytest.raises(ValueError, match="line 3 of"):
            action(path)
    assert path.read_bytes() == before


def test_truncation_keeps_the_bytes_up_to_the_step(path):
    lines = path.read_bytes().splitlines(keepends=True)
    truncate(path, step=2)
    assert path.read_bytes() == b"".join(lines[:3])
    truncate(path, step=2)
    assert path.read_bytes() == b"".join(lines[:3])
    truncate(path.with_name("absent"), step=2)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_records(path, monkeypatch):
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write '.*metrics.jsonl': No space") as caught:
        truncate(path, step=1)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208


def test_appending_to_a_full_device_names_the_file(tmp_path):
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("needs /dev/full")
    with pytest.raises((OSError, ValueError), match="cannot write '/dev/full'"):
        MetricsFile("/dev/full").append({"step": 1})
    with pytest.raises(FileNotFoundError, match="cannot write"):
        MetricsFile(tmp_path / "absent" / "m.jsonl").append({"step": 1})


# The mean -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [float, torch.tensor, lambda x: torch.tensor(x).double()])
def test_the_mean_is_the_weighted_average(make):
    generator = np.random.default_rng(0)
    values = generator.normal(1e4, 1, 500).astype(np.float32)
    weights = generator.integers(1, 100, 500).astype(float)
    mean = Mean()
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean.add(make(value), weight)
    exact = math.fsum(values.astype(float) * weights) / math.fsum(weights)
    assert mean.compute() == pytest.approx(exact, rel=1e-14, abs=0)


def test_a_resumed_mean_has_the_same_bits(tmp_path):
    values = torch.randn(20, generator=torch.Generator().manual_seed(0))
    straight, resumed = Mean(), Mean()
    for index, value in enumerate(values):
        straight.add(value, 1 / 3)
        if index == 9:
            saved = checkpoint.save(tmp_path, straight.state(), step=1)
            resumed.load(checkpoint.load(saved))
        if index > 9:
            resumed.add(value, 1 / 3)
    assert resumed.compute() == straight.compute()


def test_a_mean_keeps_no_graph_and_no_reference_to_its_values():
    value = torch.ones((), requires_grad=True)
    mean = Mean()
    mean.add(value * 2)
    state = mean.state()
    assert not state["total"].requires_grad
    other = torch.ones((), dtype=torch.float64)
    mean.add(other)
    other.fill_(100)
    mean.add(3.0, 2)
    assert mean.compute() == (2 + 1 + 6) / 4
    assert float(state["total"]) == 2  # what was handed out does not change


def test_a_mean_refuses_what_it_cannot_average():
    mean = Mean()
    with pytest.raises(ValueError, match="mean of nothing"):
        mean.compute()
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        mean.add(torch.ones(2))
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weight must be"):
            mean.add(1.0, weight)
    mean.add(math.nan, 1)
    assert math.isnan(mean.compute())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_adding_never_waits_for_the_device():
    value = torch.ones((), device="cuda")
    mean = Mean()
    mean.add(value)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            mean.add(value, 2.0)
        with pytest.raises(RuntimeError, match="synchroniz"):
            mean.compute()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert mean.compute() == 1


# TensorBoard --------------------------------------------------------------------------------------


def test_tensorboard_reads_the_numbers_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = tensorboard(tmp_path)
    for step in (1, 2, 3):
        writer.append({"step": step, "elbo_nats": -2.5 * step, "note": "x", "absent": None})
    writer.close()
    writer = tensorboard(tmp_path, resumed_at=2)
    writer.append({"step": 3, "elbo_nats": torch.tensor(-9.0)})
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["elbo_nats"]
    points = [(event.step, event.value) for event in events.Scalars("elbo_nats")]
    assert points == [(1, -2.5), (2, -5.0), (3, -9.0)]


def test_a_missing_tensorboard_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'pyro-vae\[tensorboard\]'"):
        metrics.tensorboard(tmp_path)
