"""The experiments that are held against papers: each runs, and its statistics say what they say."""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

import burda2016_iwae
import linear_gaussian
import mnih2016_vimco
import rainforth2018_tighter
import roeder2017_stl
import tucker2019_dreg
from jsonargparse import auto_cli

from pyro_vae.inference import ELBO

WITHOUT_DATA = (rainforth2018_tighter, roeder2017_stl, tucker2019_dreg)
WITH_DATA = (burda2016_iwae, mnih2016_vimco)
RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "results"
Records = dict[str, dict[str, Any]]


def write_images(path: Path, images: np.ndarray) -> None:
    path.write_bytes(bytes((0, 0, 8, images.ndim)) + struct.pack(f">{images.ndim}I", *images.shape))
    with path.open("ab") as file:
        file.write(images.tobytes())


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random images where MNIST and its binarisation would lie."""
    root = tmp_path_factory.mktemp("data")
    (root / "MNIST" / "raw").mkdir(parents=True)
    (root / "binarized_mnist").mkdir()
    random = np.random.default_rng(0)
    for part, num in (("train", 10_500), ("t10k", 30)):
        images = random.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        write_images(root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        labels = random.integers(0, 10, num, dtype=np.uint8)
        write_images(root / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", labels)
    packed = {
        part: random.integers(0, 256, (num, 98), dtype=np.uint8)
        for part, num in (("train", 300), ("valid", 30), ("test", 30))
    }
    np.savez(root / "binarized_mnist" / "binarized_mnist.npz", **packed)
    return root


@pytest.fixture(scope="module")
def records(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """The record of every experiment at the scale smoke, run as from the command line."""
    torch.set_num_threads(1)
    out, before = tmp_path_factory.mktemp("results"), listed(RESULTS)
    for experiment in (*WITHOUT_DATA, *WITH_DATA):
        args = ["--scale", "smoke", "--name", str(out / experiment.__name__)]
        args += [f"--data_root={data_root}"] if experiment in WITH_DATA else []
        auto_cli(experiment.main, args=args, as_positional=False)
    assert listed(RESULTS) == before, "a run of a test may leave nothing among the results"
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def listed(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.iterdir()}


# ---------------------------------------------------------------------------- the runs


@pytest.mark.parametrize("experiment", [*WITHOUT_DATA, *WITH_DATA], ids=lambda e: e.__name__)
def test_a_run_leaves_a_record_of_finite_numbers(experiment, records):
    found = records[experiment.__name__]
    assert found["scale"]["name"] == "smoke"
    assert found["environment"]["torch"] == torch.__version__
    assert found["protocol"][0].isupper()
    assert "  " not in found["protocol"]

    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [n for each in value.values() for n in numbers(each)]
        if isinstance(value, list):
            return [n for each in value for n in numbers(each)]
        return [value] if isinstance(value, (int, float)) else []

    assert len(numbers(found)) > 20
    assert all(map(math.isfinite, numbers(found)))


@pytest.mark.parametrize("name", ["VAE (K = 1)", "IWAE (M = 1)"])
def test_few_estimates_already_show_the_published_rates_of_the_encoder(name, records):
    line = records["rainforth2018_tighter"]["rows"][name]["encoder"]
    assert abs(line["slope"] - line["expected_slope"]) < 0.1
    assert abs(line["slope"] - line["expected_slope"]) < 5 * line["slope_standard_error"]


def test_the_noise_without_the_score_vanishes_as_in_closed_form(records):
    for row in records["roeder2017_stl"]["rows"].values():
        found, exact = np.array(row["noise"]), np.array(row["closed_form"])
        assert np.all(abs(found - exact) < 5 * np.array(row["noise_standard_error"]) + 1e-12)
        assert abs(row["slope"] - row["closed_form_slope"]) < 5 * row["slope_standard_error"]
    full, without = records["roeder2017_stl"]["rows"].values()
    assert without["noise"][-1] < 1e-12 < full["noise"][-1]
    assert round(without["closed_form_slope"], 2) == 1.0


def test_leaving_out_the_score_is_found_biased_and_dreg_is_not(records):
    rows = {
        name: {key: values[-1] for key, values in row.items()}
        for name, row in records["tucker2019_dreg"]["rows"].items()
    }
    biased, unbiased = rows["without the score"], rows["DReG"]
    assert biased["squared_bias"] > 10 * biased["squared_bias_standard_error"]
    assert abs(unbiased["squared_bias"]) < 3 * unbiased["squared_bias_standard_error"]
    assert unbiased["noise"] < rows["IWAE"]["noise"]


# ---------------------------------------------------------------------------- the statistics


def test_gradients_have_the_mean_and_the_noise_of_the_closed_form():
    # With z = m + s e, the bound's gradient by the location m of q is loc + x - 2 z.
    x = linear_gaussian.data(6, 3).double()
    program = linear_gaussian.LinearGaussian(x, offset=0.3)
    rows = linear_gaussian.gradients(program, x, ELBO(), 1000)
    with torch.no_grad():
        by_m = program.loc + x - 2 * (x @ program.A.T + program.b)
        by_loc = (x @ program.A.T + program.b - program.loc).mean(0)
        by_encoder = torch.cat([(by_m.T @ x / len(x)).flatten(), by_m.mean(0)])
    for estimates, expected in ((rows["encoder"], by_encoder), (rows["decoder"], by_loc)):
        error = estimates.std(0) / math.sqrt(len(estimates))
        assert bool(((estimates.mean(0) - expected).abs() < 4.5 * error).all())
    noise = roeder2017_stl.closed_form(x, 2 * math.sqrt(2 / 3))
    assert abs(roeder2017_stl.noise(rows["encoder"]).item() / noise - 1) < 0.05


def test_the_optimum_is_one():
    x = linear_gaussian.data(50, 3).double()
    program = linear_gaussian.LinearGaussian(x, offset=0.0)
    rows = linear_gaussian.gradients(program, x, ELBO(1000), 20)
    for estimates in rows.values():
        error = estimates.std(0) / math.sqrt(len(estimates))
        assert bool((estimates.mean(0).abs() < 4.5 * error).all())


def normal_samples(mean: float, num_repeats: int) -> torch.Tensor:
    return mean + torch.randn(num_repeats, 40, 300, dtype=torch.float64)


def test_the_signal_is_freed_of_what_noise_adds():
    mean = 0.1
    freed = [rainforth2018_tighter.signal_to_noise(each, each) for each in normal_samples(mean, 60)]
    assert abs(torch.stack(freed).mean().item() / mean - 1) < 0.05
    # What has to be caught: the mean of the estimates taken for the expectation.
    taken = [(each.mean(0) ** 2).sum() / each.var(0).sum() for each in normal_samples(mean, 60)]
    assert torch.stack(taken).sqrt().mean().item() / mean > 1.5


def test_the_bias_is_freed_of_what_noise_adds():
    unit = torch.ones(40, 300, dtype=torch.float64)
    pairs = zip(normal_samples(0.1, 60), normal_samples(0.0, 60), strict=True)
    found = [tucker2019_dreg.squared_bias(*pair, unit) for pair in pairs]
    assert abs(torch.stack(found).mean().item() - 0.01) < 0.002


def test_the_jackknife_of_a_mean_is_its_standard_error():
    sample = torch.randn(10, 3, dtype=torch.float64)
    value, error = linear_gaussian.jackknifed(lambda rows: rows.mean(0), sample)
    torch.testing.assert_close(value, sample.mean(0))
    torch.testing.assert_close(error, sample.std(0) / math.sqrt(10))


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0])
def test_the_slope_of_a_power_is_its_exponent(power):
    places = (1, 4, 64, 1000)
    values = 3 * torch.tensor(places).double() ** power
    assert linear_gaussian.slope(places, values).item() == pytest.approx(power, abs=1e-12)


# ---------------------------------------------------------------------------- the protocols


def test_the_stages_are_the_published_ones():
    paper = burda2016_iwae.SCALES["paper"].stages
    stages, num_epochs = burda2016_iwae.Stages(paper), sum(paper)
    assert num_epochs == 3280
    expected = [10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    # The first step of each epoch, and its last, as the engine counts them.
    first = [stages(20 * epoch / (20 * num_epochs)) for epoch in range(num_epochs)]
    last = [stages((20 * epoch + 19) / (20 * num_epochs)) for epoch in range(num_epochs)]
    assert first == expected
    assert last == expected
    assert stages(1.0) == expected[-1]


def test_the_network_is_the_published_one():
    x = torch.rand(500, 1, 28, 28)
    x[:, :, 0] = 0.0
    vae = burda2016_iwae.program(x)
    encoder = 784 * 200 + 200 + 200 * 200 + 200 + 2 * (200 * 50 + 50)
    decoder = 50 * 200 + 200 + 200 * 200 + 200 + 200 * 784 + 784
    assert sum(p.numel() for p in vae.parameters()) == encoder + decoder
    start = vae.likelihood(torch.zeros(1, 50)).mean[0]
    torch.testing.assert_close(start, x.mean(0).clamp(0.001, 0.999))
    for layer in vae.modules():
        if isinstance(layer, torch.nn.Linear):
            glorot = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert 0.98 * glorot < layer.weight.abs().max().item() <= glorot


def test_the_network_of_two_layers_is_the_published_one():
    x = torch.rand(50, 1, 28, 28)
    vae = burda2016_iwae.program(x, num_layers=2)
    encoder = 784 * 200 + 200 + 200 * 200 + 200 + 2 * (200 * 100 + 100)
    encoder += 100 * 100 + 100 + 100 * 100 + 100 + 2 * (100 * 50 + 50)
    decoder = 50 * 100 + 100 + 100 * 100 + 100 + 2 * (100 * 100 + 100)
    decoder += 100 * 200 + 200 + 200 * 200 + 200 + 200 * 784 + 784
    assert sum(p.numel() for p in vae.parameters()) == encoder + decoder
    assert {type(m) for m in vae.modules()} & {torch.nn.SiLU, torch.nn.Tanh} == {torch.nn.Tanh}
    rows = {title: row.published for title, row in burda2016_iwae.TABLE.items()}
    assert rows["two layers: IWAE, k = 50"] == {
        "nll_nats": 82.90, "active_units": 33, "active_units_z1": 26, "active_units_z2": 7
    }  # fmt: skip
    assert rows["IWAE, k = 50"] == {"nll_nats": 84.78, "active_units": 25}


@pytest.mark.parametrize(("better", "worse"), burda2016_iwae.ORDER)
def test_the_order_is_that_of_the_published_numbers(better, worse):
    nll = {name: row.published_nll_nats for name, row in burda2016_iwae.TABLE.items()}
    assert nll[better] < nll[worse]


def test_the_belief_network_has_binary_latents_and_linear_logits():
    x = (torch.rand(50, 784) < 0.2).float()
    vae = mnih2016_vimco.program(x)
    assert sum(p.numel() for p in vae.parameters()) == 2 * 200 * 784 + 200 + 200 + 784
    # A pixel that is hardly ever black must not weigh more than the others.
    torch.testing.assert_close(vae.posterior(x.mean(0)).mean, torch.full((200,), 0.5))
    at = [vae.posterior(x.mean(0) + unit).base_dist.logits for unit in torch.eye(784)]
    assert torch.stack(at).abs().max().item() <= 1 / 28 + 1e-5
    z = vae.posterior(x[:2]).sample()
    assert set(z.unique().tolist()) == {0.0, 1.0}
    a, b = torch.rand(2, 200)
    logits = [vae.likelihood(each).base_dist.logits for each in (a, b, 0.5 * (a + b))]
    torch.testing.assert_close(logits[2], 0.5 * (logits[0] + logits[1]))
