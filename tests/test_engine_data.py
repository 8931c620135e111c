"""Observations and batches: what is drawn, in which order, and that streaming changes nothing."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_vae.datasets import Data
from pyro_vae.engine import data as engine_data
from pyro_vae.engine.data import OBSERVATION_SEED, Batches, observe_once
from pyro_vae.engine.observations import AsFloat, Binarize, Dequantize, Rescale

OBSERVATIONS = [
    AsFloat(),
    Rescale(255),
    Binarize(255),
    Binarize(255, resample=False),
    Dequantize(255),
]
NOISY = [Binarize(255), Dequantize(255)]
GREY = torch.arange(256, dtype=torch.uint8)


def rows(num: int = 23, *, labels: bool = True) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (num, 1, 2, 3), dtype=torch.uint8, generator=generator)
    return Data(x, torch.arange(num) if labels else None)


def batches(observation=None, *, data: Data | None = None, **options) -> Batches:
    options = {"batch_size": 5, "seed": 3, "device": "cpu", "fields": ("x", "labels"), **options}
    return Batches(data or rows(), observation or AsFloat(), **options)


def collect(source: Batches, epoch: int, **options) -> list[tuple[torch.Tensor, ...]]:
    torch.manual_seed(7)
    return list(source.epoch(epoch, **options))


def equal(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) and a.dtype == b.dtype
        for first, second in zip(one, other, strict=True)
        for a, b in zip(first, second, strict=True)
    )


# -------------------------------------------------------------------------------- observations


@pytest.mark.parametrize("observation", OBSERVATIONS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_observation_is_a_float_tensor_of_the_same_shape(observation, dtype):
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for stored in (torch.uint8, torch.int16, torch.int32, torch.float32):
            x = rows().x.to(stored)
            seen = observation(x)
            assert (seen.shape, seen.dtype) == (x.shape, dtype)
            assert torch.equal(x, rows().x.to(stored)), "the stored rows were modified"
    finally:
        torch.set_default_dtype(default)


def test_values_without_noise_are_exact():
    assert torch.equal(AsFloat()(GREY), torch.arange(256.0))
    assert torch.equal(Rescale(255)(GREY), torch.arange(256.0) / 255)
    assert Rescale(255)(GREY)[-1] == 1


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_binarize_draws_zeros_and_ones_with_mean_x_over_levels(levels):
    torch.manual_seed(0)
    num = 20_000
    probs = torch.arange(levels + 1.0) / levels
    draws = Binarize(levels)(torch.arange(levels + 1, dtype=torch.uint8).expand(num, -1))
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    error = (draws.mean(0) - probs).abs()
    # Six standard errors: false alarms of one in 10^6 over all levels; a bias of 0.02 is caught.
    assert (error <= 6 * (probs * (1 - probs) / num).sqrt()).all()


def test_binarize_draws_anew_and_pixels_are_independent():
    torch.manual_seed(0)
    x = torch.full((400, 50), 128, dtype=torch.uint8)
    one, other = Binarize(255)(x), Binarize(255)(x)
    agreement = (one == other).float().mean().item()
    assert agreement == pytest.approx(0.5, abs=6 * 0.5 / math.sqrt(x.numel()))


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_dequantize_stays_in_its_bin_and_fills_it(levels):
    torch.manual_seed(0)
    x = torch.arange(levels + 1, dtype=torch.uint8).expand(4_000, -1)
    seen = Dequantize(levels)(x).double()
    within = seen * (levels + 1) - x
    slack = (levels + 1) * torch.finfo(torch.float32).eps
    assert (within >= -slack).all()
    assert (within <= 1).all()
    assert ((seen >= 0) & (seen < 1)).all()
    assert torch.equal((seen * (levels + 1) + slack / 2).floor(), x.double())
    # Kolmogorov-Smirnov distance to U[0, 1]; 2.2 / sqrt(n) has a probability of 1e-4.
    ordered = within.flatten().sort().values
    grid = torch.arange(1, len(ordered) + 1, dtype=torch.float64) / len(ordered)
    assert (ordered - grid).abs().max() <= 2.2 / math.sqrt(len(ordered))


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_dequantize_never_rounds_up_into_the_next_bin(monkeypatch, levels):
    largest = 1 - 2.0**-24
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, largest))
    x = torch.arange(levels + 1, dtype=torch.uint8)
    seen = Dequantize(levels)(x).double()
    assert torch.equal((seen * (levels + 1)).floor(), x.double())
    assert seen.max() < 1


# ---------------------------------------------------------------------------------- observe_once


@pytest.mark.parametrize("observation", OBSERVATIONS, ids=repr)
def test_observing_once_depends_on_its_seed_alone_and_moves_no_generator(observation):
    data = rows()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = observe_once(data, observation, seed=5, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same = observe_once(data, observation, seed=5, device="cpu")
    other = observe_once(data, observation, seed=6, device="cpu")
    assert torch.equal(one.x, same.x)
    assert torch.equal(one.x, other.x) == isinstance(observation, AsFloat | Rescale)
    assert torch.equal(one.labels, data.labels)
    one.x.fill_(-1)
    assert torch.equal(data.x, rows().x), "the result shares memory with the stored rows"


def test_observing_once_shares_nothing_with_float_rows():
    data = Data(torch.randn(5, 2))
    observe_once(data, AsFloat(), seed=0, device="cpu").x.zero_()
    assert data.x.abs().min() > 0


def test_observing_once_in_chunks_observes_every_row_in_place(monkeypatch):
    monkeypatch.setattr(engine_data, "_CHUNK_BYTES", 100)
    seen = observe_once(rows(), Rescale(255), seed=0, device="cpu")
    assert torch.equal(seen.x, rows().x / 255)
    drawn = observe_once(rows(), Binarize(255), seed=0, device="cpu").x
    assert not torch.equal(drawn[:2], drawn[2:4])
    assert drawn.unique().tolist() == [0, 1]


@pytest.mark.parametrize("observation", [Rescale(16), Binarize(1), Dequantize(254)], ids=repr)
def test_rows_beyond_the_levels_are_refused(observation):
    data = Data(GREY[:, None])
    name = f"{type(observation).__name__}.*levels={observation.levels}"
    with pytest.raises(ValueError, match=f"{name}.* the data go from 0 to 255") as caught:
        observe_once(data, observation, seed=0, device="cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=name):
        Batches(data, observation, batch_size=2, seed=0, device="cpu")


@pytest.mark.parametrize("observation", [Dequantize(255), Binarize(255), Dequantize(1)], ids=repr)
def test_values_that_were_divided_already_are_refused_where_integers_are_due(observation):
    x = torch.linspace(0, 1, 12).reshape(6, 2)
    with pytest.raises(ValueError, match=r"the data hold 0\.0909091; give them as integers"):
        observe_once(Data(x), observation, seed=0, device="cpu")
    for whole in (x.round(), torch.full((6, 2), torch.nan)):
        observe_once(Data(whole), observation, seed=0, device="cpu")


# --------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("memory_budget", [10**9, 0])
@pytest.mark.parametrize(("num", "size"), [(23, 5), (20, 5), (1, 1), (7, 7), (6, 1)])
def test_every_row_is_visited_once_with_its_label_and_the_last_batch_is_smaller(
    num, size, memory_budget
):
    data = rows(num)
    source = batches(data=data, batch_size=size, memory_budget=memory_budget)
    assert source.resident == (memory_budget > 0)
    epoch = collect(source, 0)
    assert source.num_batches == len(epoch) == math.ceil(num / size)
    assert [len(x) for x, _ in epoch[:-1]] == [size] * (len(epoch) - 1)
    assert len(epoch[-1][0]) == (num % size or size)
    x, labels = (torch.cat(column) for column in zip(*epoch, strict=True))
    assert labels.sort().values.tolist() == list(range(num))
    assert torch.equal(x, data.x[labels].float())


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int, **options) -> list[int]:
        source = batches(seed=seed, **options)
        list(source.epoch(4))
        torch.manual_seed(seed + epoch)
        return torch.cat([labels for _, labels in source.epoch(epoch)]).tolist()

    seen = [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(one) for one in seen}) == 9, "seed and epoch must not be interchangeable"
    assert order(1, 2) == order(1, 2, batch_size=23) == order(1, 2, memory_budget=0) == seen[5]


def test_the_order_is_uniform():
    firsts = torch.stack(
        [engine_data._permutation(4, seed, epoch) for seed in range(40) for epoch in range(100)]
    )
    counts = torch.stack([(firsts == row).sum(0) for row in range(4)])
    # 4,000 draws of probability 1/4: six standard errors are 164.
    assert (counts - 1000).abs().max() < 164


@pytest.mark.parametrize("observation", OBSERVATIONS, ids=repr)
def test_streamed_batches_are_the_resident_ones_bit_for_bit(observation):
    resident, streamed = batches(observation), batches(observation, memory_budget=0)
    assert (resident.resident, streamed.resident) == (True, False)
    for epoch in (0, 1):
        assert equal(collect(resident, epoch), collect(streamed, epoch))
        state = torch.get_rng_state()
        collect(resident, epoch)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("memory_budget", [10**9, 0])
@pytest.mark.parametrize("observation", OBSERVATIONS, ids=repr)
def test_an_epoch_can_start_anywhere(observation, memory_budget):
    source = batches(observation, memory_budget=memory_budget)
    for start in range(source.num_batches + 1):
        torch.manual_seed(7)
        whole = source.epoch(2)
        for _ in range(start):
            next(whole)
        state = torch.get_rng_state()
        rest = list(whole)
        torch.set_rng_state(state)
        assert equal(list(source.epoch(2, start=start)), rest)
        assert len(rest) == source.num_batches - start


@pytest.mark.parametrize("memory_budget", [10**9, 0])
def test_drawing_batches_without_noise_leaves_the_global_generator_alone(memory_budget):
    source = batches(Rescale(255), memory_budget=memory_budget)
    state = torch.get_rng_state()
    list(source.epoch(0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("observation", NOISY, ids=repr)
def test_training_rows_are_observed_anew_at_every_visit(observation):
    source = batches(observation)
    one, other = list(source.epoch(0)), list(source.epoch(0))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))
    assert not equal(one, other)


def test_static_binarisation_is_drawn_once_whatever_the_seed_of_the_run():
    def seen(seed: int, epoch: int) -> torch.Tensor:
        source = batches(Binarize(255, resample=False), seed=seed)
        x, labels = (torch.cat(column) for column in zip(*source.epoch(epoch), strict=True))
        return x[labels.argsort()]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = seen(0, 0)
    assert torch.equal(first, seen(0, 1))
    assert torch.equal(first, seen(1, 0))
    assert torch.equal(torch.get_rng_state(), state)
    want = observe_once(rows(), Binarize(255), seed=OBSERVATION_SEED, device="cpu").x
    assert torch.equal(first, want)


def test_batches_without_labels():
    (first, *_) = batches(data=rows(labels=False), fields=("x",)).epoch(0)
    assert len(first) == 1
    with pytest.raises(ValueError, match="the data have no labels: their fields: x"):
        batches(data=rows(labels=False))


@pytest.mark.parametrize("size", [0, -3, 24])
def test_a_batch_size_outside_the_data_is_refused_with_both_numbers(size):
    with pytest.raises(ValueError, match=rf"batch_size={size} .*with 23 training rows; .* 1 to 23"):
        batches(batch_size=size)


@pytest.mark.parametrize("start", [-1, 6])
def test_a_start_outside_the_epoch_is_refused_at_once(start):
    with pytest.raises(ValueError, match=f"start {start} of an epoch of 5 batches"):
        batches().epoch(0, start=start)


def test_rows_that_do_not_fit_on_the_device_are_streamed_with_one_warning(monkeypatch):
    resident = collect(batches(Binarize(255)), 0)
    move = torch.Tensor.to

    def out_of_memory(self: torch.Tensor, *args, **options):
        if len(self) == 23 and args == (torch.device("cpu"),):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return move(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", out_of_memory)
    with pytest.warns(UserWarning, match="no room on cpu") as caught:
        source = batches(Binarize(255))
    assert len(caught) == 1
    assert not source.resident
    assert equal(collect(source, 0), resident)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_order_and_streaming_the_same_bits():
    resident = batches(Binarize(255), device="cuda")
    streamed = batches(Binarize(255), device="cuda", memory_budget=0)
    one, other = collect(resident, 0), collect(streamed, 0)
    assert equal(one, other)
    assert one[0][0].device.type == "cuda"
    assert torch.equal(one[0][1].cpu(), collect(batches(), 0)[0][1])
    state = torch.cuda.get_rng_state()
    observed = observe_once(rows(), Binarize(255), seed=0, device="cuda").x.cpu()
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.equal(observed, observe_once(rows(), Binarize(255), seed=0, device="cpu").x)
