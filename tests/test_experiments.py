"""The experiments that are held against papers: each runs, and its statistics say what they say."""

from __future__ import annotations

import itertools
import json
import lzma
import math
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.linalg
import scipy.sparse
import scipy.stats
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

import bowman2016_sentences
import burda2016_iwae
import chen2017_vlae
import clusters
import cremer2018_gaps
import finetune
import ghosh2020_ex_post
import gomez_bombarelli2018_zinc
import he2019_lagging
import hoffman2017_hmc
import kingma2014_semi_supervised
import kingma2016_flows
import likelihoods
import linear_gaussian
import mnih2016_vimco
import oord2017_vqvae
import rainforth2018_tighter
import roeder2017_stl
import sonderby2016_ladder
import sparse_autoencoder
import srivastava2017_prodlda
import study
import tables
import tomczak2018_vampprior
import topdown
import tucker2019_dreg
import vincent2010_denoising
from jsonargparse import auto_cli
from linear import LinearGaussian
from PIL import Image

from pyro_vae import VAE, distributions, evaluation
from pyro_vae.components import MLP, Incomplete, Normal
from pyro_vae.datasets import published
from pyro_vae.inference import ELBO

WITHOUT_DATA = (
    rainforth2018_tighter,
    roeder2017_stl,
    tucker2019_dreg,
    tables,
    clusters,
    bowman2016_sentences,
)
WITH_DATA = (
    burda2016_iwae,
    mnih2016_vimco,
    tomczak2018_vampprior,
    kingma2014_semi_supervised,
    kingma2016_flows,
    likelihoods,
    sonderby2016_ladder,
    he2019_lagging,
    cremer2018_gaps,
    topdown,
    oord2017_vqvae,
    sparse_autoencoder,
    ghosh2020_ex_post,
    gomez_bombarelli2018_zinc,
    finetune,
    hoffman2017_hmc,
    vincent2010_denoising,
    chen2017_vlae,
    srivastava2017_prodlda,
)
QUICK = (roeder2017_stl,)  # the others take ten seconds each
RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "results"
Records = dict[str, dict[str, Any]]


def write_images(path: Path, images: np.ndarray) -> None:
    path.write_bytes(bytes((0, 0, 8, images.ndim)) + struct.pack(f">{images.ndim}I", *images.shape))
    with path.open("ab") as file:
        file.write(images.tobytes())


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random images where the published ones would lie, taken for those."""
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
    (root / "olivetti").mkdir()
    faces = random.integers(0, 256, (4096, 400), dtype=np.uint8)
    scipy.io.savemat(root / "olivetti" / "olivettifaces.mat", {"faces": faces})
    (root / "omniglot").mkdir()
    # An image says which character it is, and who drew it.
    drawn = random.integers(0, 256, (8, 20, 28, 28), dtype=np.uint8)
    drawn[:, :, 0, 0], drawn[:, :, 0, 1] = np.arange(8)[:, None], np.arange(20)
    np.savez(root / "omniglot" / "omniglot_28x28.npz", images=drawn)
    (root / "zinc250k").mkdir()
    chains = [
        f"{'C' * long}{end}" for long in range(1, 13) for end in ("", "O", "N", "(=O)N", "Cl")
    ]
    with lzma.open(root / "zinc250k" / "zinc250k.smi.xz", "wt") as file:
        file.write("\n".join(chains * 100))  # the first 5,000 are for the test
    np.save(root / "zinc250k" / "jtvae_valid_idx.npy", np.arange(5_000, 5_060))
    (root / "cifar10").mkdir()
    for part in (*range(10), 50):
        image = Image.fromarray(colours(part, 8).reshape(8, 1024, 3))
        image.save(root / "cifar10" / f"cifar10_batch_{part}.png")
    (root / "20newsgroups").mkdir()
    for part, num in (("train", 40), ("test", 20)):
        counts = scipy.sparse.csr_matrix(random.poisson(1.0, (num, 40)))
        scipy.sparse.save_npz(root / "20newsgroups" / f"{part}.npz", counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "_check_published", lambda *files: None)
        yield root


def colours(part: int, num: int) -> np.ndarray:
    return np.random.default_rng(part).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)


class Smoked(dict[str, Any]):
    """Records of experiments at the scale smoke, each run when it is first asked for."""

    def __init__(self, data_root: Path, out: Path) -> None:
        self.data_root, self.out = data_root, out

    def __missing__(self, name: str) -> Any:
        (experiment,) = [e for e in (*WITHOUT_DATA, *WITH_DATA) if e.__name__ == name]
        torch.set_num_threads(1)
        before = listed(RESULTS)
        args = ["--scale", "smoke", "--name", str(self.out / name)]
        args += [f"--data_root={self.data_root}"] if experiment in WITH_DATA else []
        auto_cli(experiment.main, args=args, as_positional=False)
        assert listed(RESULTS) == before, "a run of a test may leave nothing among the results"
        self[name] = json.loads((self.out / f"{name}.json").read_text())
        return self[name]


@pytest.fixture(scope="module")
def records(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """The records of all experiments, run as from the command line."""
    return Smoked(data_root, tmp_path_factory.mktemp("results"))


def listed(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.iterdir()}


# ---------------------------------------------------------------------------- the runs


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(each, marks=() if each in QUICK else pytest.mark.slow)
        for each in (*WITHOUT_DATA, *WITH_DATA)
    ],
    ids=lambda each: each.__name__,
)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_frechet_distance_is_that_of_two_normals():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(50, 4, generator=generator).double() for _ in range(2))
    theirs = 2.0 * theirs @ torch.randn(4, 4, generator=generator).double() + 3.0
    one, other = np.cov(ours.T), np.cov(theirs.T)
    apart = ((ours.mean(0) - theirs.mean(0)) ** 2).sum().item()
    both = np.trace(scipy.linalg.sqrtm(one @ other).real)
    expected = apart + np.trace(one) + np.trace(other) - 2 * both
    assert ghosh2020_ex_post.frechet_distance(ours, theirs) == pytest.approx(expected, rel=1e-8)
    moved = ghosh2020_ex_post.frechet_distance(ours, ours + 0.5)
    assert moved == pytest.approx(4 * 0.25, rel=1e-8)


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


@pytest.mark.parametrize(("better", "worse"), kingma2016_flows.ORDER)
def test_the_order_of_posteriors_is_that_of_the_published_bounds(better, worse):
    elbo = {name: row.published_elbo_nats for name, row in kingma2016_flows.TABLE.items()}
    assert elbo[better] > elbo[worse]


def test_priors_differ_by_their_own_parameters_alone():
    x, scale = torch.rand(600, 1, 28, 28).round(), tomczak2018_vampprior.SCALES["paper"]
    counts = {}
    for title, row in tomczak2018_vampprior.TABLE.items():
        vae = tomczak2018_vampprior.program(row.prior(scale.num_components), x, scale.hidden)
        counts[title] = sum(p.numel() for p in vae.parameters())
    encoder = 2 * (784 * 300 + 300 + 300 * 300 + 300) + 2 * (300 * 40 + 40)
    decoder = 2 * (40 * 300 + 300 + 300 * 300 + 300) + 300 * 784 + 784
    assert counts["standard normal"] == encoder + decoder
    assert counts["VampPrior"] - counts["standard normal"] == 500 * 784
    assert counts["mixture of normals"] - counts["standard normal"] == 500 * (1 + 2 * 40)


@pytest.mark.slow
def test_the_gap_is_between_what_stands_beside_it(records):
    for row in records["kingma2016_flows"]["rows"].values():
        assert row["gap_nats"] == pytest.approx(-row["nll_nats"] - row["elbo_nats"])
        assert row["gap_nats"] > -0.5


# ---------------------------------------------------------------------------- bits per dim


@pytest.mark.parametrize("title", ["ContinuousBernoulli", "Categorical"])
def test_a_uniform_likelihood_of_256_levels_has_eight_bits(title):
    row = likelihoods.TABLE[title]
    levels = torch.randint(0, 256, (10, 1, 2, 2)).float()
    vae = likelihoods.program(row, row.observation(levels), (3,))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
    found = study.judge(vae, row.observation(levels), num_samples=10)
    added = likelihoods.added_bits(row, (1, 2, 2))
    bits = likelihoods.of_levels(found, added, 4)
    assert bits["bits_per_dim"] == pytest.approx(8, abs=1e-4)
    assert bits["elbo_bits_per_dim"] == pytest.approx(8, abs=1e-4)
    assert bits["log_p"].mean().item() == pytest.approx(-4 * math.log(256), abs=1e-3)


def test_the_bits_of_a_density_bound_those_of_its_bins():
    # The density is exponential within a bin, so the bound is nearly tight, and the bins add to 1.
    density = distributions.ContinuousBernoulli(torch.tensor(-9.0).double())
    edges = torch.linspace(0, 1, 257).double()
    bins = density.cdf(edges).diff()
    u = (torch.arange(1000).double() + 0.5) / 1000
    of_density = density.log_prob((torch.arange(256).double().unsqueeze(1) + u) / 256).mean(1)
    added = likelihoods.added_bits(likelihoods.TABLE["ContinuousBernoulli"], (1,))
    found = {"nll_nats": -of_density.mean(), "elbo_nats": of_density.mean(), "log_p": of_density}
    found |= {"distortion_nats": -of_density.mean(), "nll_nats_standard_error": 0.0}
    bits = likelihoods.of_levels(found, added, 1)
    slack = bins.log() - bits["log_p"]
    assert bool((slack > 0).all())
    assert slack.max().item() < 1e-4
    assert bits["bits_per_dim"].item() == pytest.approx(-bins.log2().mean().item(), abs=1e-4)


@pytest.mark.slow
def test_numbers_of_another_measure_are_refused(records):
    found = records["likelihoods"]
    assert set(found["refused"]) == {"ContinuousBernoulli, rescaled", "Bernoulli, rescaled"}
    assert not set(found["refused"]) & set(found["rows"])
    assert "(Dequantize)" in found["refused"]["ContinuousBernoulli, rescaled"]
    assert "(AsFloat)" in found["refused"]["Bernoulli, rescaled"]


def test_faces_are_upright_averages(data_root):
    stored = scipy.io.loadmat(data_root / "olivetti" / "olivettifaces.mat")["faces"]
    images = likelihoods.faces(data_root, 16)
    assert [len(p.x) for p in (images.train, images.validation, images.test)] == [560, 40, 80]
    face = stored[:, 18].reshape(64, 64).T  # of the second person the ninth, by columns
    expected = face.reshape(16, 4, 16, 4).mean((1, 3)).round()
    assert np.array_equal(images.test.x[2, 0].numpy(), expected)
    assert torch.equal(images.train.x[280:], images.train.x[:280].flip(-1))


# ---------------------------------------------------------------------------- tables with gaps


COLUMNS_OF = {
    "real": (tables.REAL, lambda x: scipy.stats.norm(x.mean(), x.std()).logpdf),
    "bit": (tables.BIT, lambda x: scipy.stats.bernoulli((x.sum() + 0.5) / (len(x) + 1)).logpmf),
    "count": (tables.COUNT, lambda x: scipy.stats.poisson((x.sum() + 0.5) / (len(x) + 1)).logpmf),
    "out of": (
        tables.out_of(1), lambda x: scipy.stats.binom(1, (x.sum() + 0.5) / (len(x) + 1)).logpmf,
    ),
    "category": (
        tables.one_of(2), lambda x: scipy.stats.bernoulli((x.sum() + 0.5) / (len(x) + 1)).logpmf,
    ),
}  # fmt: skip


def test_the_baseline_is_the_sum_of_columns_in_closed_form():
    random = np.random.default_rng(0)
    train, test = random.integers(0, 2, (2, 30, len(COLUMNS_OF))).astype(float)
    for x in (train, test):
        x[random.random(x.shape) < 0.2] = math.nan
    alone = tables.ColumnsAlone(torch.tensor(train), [kind for kind, _ in COLUMNS_OF.values()])
    expected = np.zeros(30)
    for place, (_, fitted) in enumerate(COLUMNS_OF.values()):
        seen, asked = train[:, place], test[:, place]
        log_p = fitted(seen[~np.isnan(seen)])
        expected += np.where(np.isnan(asked), 0.0, log_p(np.nan_to_num(asked)))
    np.testing.assert_allclose(alone.log_p(torch.tensor(test)).numpy(), expected, rtol=1e-6)
    filled = alone.imputed(torch.tensor(test))
    means = np.broadcast_to(np.nanmean(train, 0), test.shape)
    gaps = np.isnan(test[:, :-1])
    np.testing.assert_allclose(filled[:, :-1].numpy()[gaps], means[:, :-1][gaps])
    assert set(filled[:, -1].tolist()) <= {0.0, 1.0}


def test_whole_numbers_have_the_moments_of_their_column():
    x = torch.tensor([40.0, 55, 61, 48, 52, 44, 60, 39]).double()
    values = torch.arange(101).double()
    weights = tables.whole(100).closed_form(x).log_prob(values).exp()
    mean = (weights * values).sum()
    assert mean.item() == pytest.approx(x.mean().item(), abs=0.01)
    variance = (weights * (values - mean) ** 2).sum().item()
    assert variance == pytest.approx(x.var(correction=0).item() + 1 / 12, rel=0.01)


@pytest.mark.parametrize("title", tables.TABLES)
def test_a_fifth_of_a_table_is_removed_and_nothing_else(title):
    table = tables.TABLES[title]()
    split = tables.with_gaps(table, 2_000, 0)
    seen = torch.cat(split[:3])
    assert seen.shape == table.x.shape
    assert abs(seen.isnan().float().mean().item() - 0.2) < 0.03
    observed = ~split.test.isnan()
    assert torch.equal(split.test[observed], split.complete[observed])
    for place, kind in enumerate(table.kinds):
        column = split.train[:, place]
        column = column[~column.isnan()]
        if kind is tables.REAL:
            assert abs(column.mean().item()) < 1e-4
            assert abs(column.std(correction=0).item() - 1) < 1e-4
        else:
            rest = table.x[:, place]
            assert torch.equal(rest, rest.round())
            family = kind.family((1,))
            support = family(torch.zeros(family.raw_shape)).support
            assert bool(support.check(rest.unsqueeze(-1)).all())


def test_what_is_imputed_is_the_exact_conditional_mean():
    normal = partial(Normal, scale=0.5)
    vae = VAE.assemble(
        (3,), (2,), likelihood=partial(Incomplete, family=normal), network=partial(MLP, hidden=())
    ).double()
    (weight,) = (p.detach() for p in vae.likelihood.network.parameters())
    with torch.no_grad():
        for parameter in vae.posterior.network.parameters():
            parameter.zero_()
        vae.posterior.offset.fill_(0.3)  # another q than p(z), and than the exact one
        weight.copy_(torch.tensor([[1.0, 0.5], [-0.7, 0.4], [0.2, 1.0]]))
        vae.likelihood.offset.copy_(torch.tensor([[1.0, 2.0, -1.0]]))
        covariance = weight @ weight.T + 0.25 * torch.eye(3).double()
    x = torch.tensor([[0.3, math.nan, -0.2], [math.nan, 2.5, math.nan]]).double()
    found = tables.imputed(vae, x, [tables.REAL] * 3, 200_000)
    loc = torch.tensor([1.0, 2.0, -1.0]).double()
    for row, exact in zip(x, found, strict=True):
        gap = row.isnan()
        gain = covariance[gap][:, ~gap] @ torch.linalg.inv(covariance[~gap][:, ~gap])
        expected = loc[gap] + gain @ (row - loc)[~gap]
        torch.testing.assert_close(exact[gap], expected, atol=0.04, rtol=0)
        assert torch.equal(exact[~gap], row[~gap])


def test_a_likelihood_that_forgets_z_imputes_its_mean_and_its_commonest_category():
    kinds = (tables.REAL, tables.one_of(3))
    x = torch.tensor([[0.0, 2.0], [2.0, 2.0], [4.0, 1.0], [2.0, 2.0]])
    vae = tables.program(tables.Table(x, kinds), x, (4,))
    with torch.no_grad():
        for parameter in vae.likelihood.network.parameters():
            parameter.zero_()
    gaps = torch.full((1, 2), math.nan)
    found = tables.imputed(vae, gaps, kinds, 2_000)
    torch.testing.assert_close(found, torch.tensor([[2.0, 2.0]]))


def test_errors_are_in_deviations_of_columns_of_a_kind():
    kinds = (tables.COUNT, tables.COUNT, tables.REAL, tables.one_of(2))
    train = torch.tensor([[0.0, 0.0, -1.0, 0.0], [0.0, 2.0, 1.0, 1.0]])
    complete = torch.tensor([[1.0, 5.0, 3.0, 1.0], [1.0, 5.0, 3.0, 0.0]])
    split = tables.Split(train, train, torch.full((2, 4), math.nan), complete)
    found = tables.errors(torch.tensor([1.0, 4.0, 3.0, 1.0]).expand(2, 4), split, kinds)
    # Counts have the variance (0 + 1) / 2; of six numbers two are off by one.
    assert found["rmse_deviations"] == pytest.approx(math.sqrt(2 * 2 / 6))
    assert found["misclassified_percent"] == 50


# ---------------------------------------------------------------------------- hierarchies


def dense(*sizes: int, normalised: bool = False) -> int:
    """Return how many parameters dense layers of these sizes have.

    A layer that is normalised has an offset and a scale of each number in place of its bias; the
    last is not.
    """
    *hidden, (a, b) = itertools.pairwise(sizes)
    return sum(a * b + (2 * b if normalised else b) for a, b in hidden) + a * b + b


def latent(*sizes: int, normalised: bool = False) -> int:
    """Return the same where the last layer gives two normalised parameters of a latent."""
    a, b = sizes[-2:]
    once_more = a * b + b + (2 * 2 * b if normalised else 0)
    return dense(*sizes, normalised=normalised) + once_more


def test_the_hierarchies_of_the_ladder_paper_have_its_sizes():
    x, latents, widths = torch.rand(30, 1, 28, 28), [64, 32, 16, 8, 4], [512, 256, 128, 64, 32]
    below = [784, *latents]
    for title, row in sonderby2016_ladder.TABLE.items():
        vae, normalised = sonderby2016_ladder.program(row, x), row.batch_norm
        expected = dense(64, 512, 512, 784, normalised=normalised)
        for layer in range(1, 5):
            sizes = (latents[layer], widths[layer], widths[layer], latents[layer - 1])
            expected += latent(*sizes, normalised=normalised)
        for layer, width in enumerate(widths):
            if row.ladder:
                start = 784 if layer == 0 else widths[layer - 1]
                expected += dense(start, width, width, 1, normalised=True) - (width + 1)
                # The second layer's bias is counted once more as an offset and a scale.
                expected += latent(width, latents[layer], normalised=True)
            else:
                sizes = (below[layer], width, width, latents[layer])
                expected += latent(*sizes, normalised=normalised)
        assert sum(p.numel() for p in vae.parameters()) == expected, title


def test_each_layer_of_the_ladder_is_normalised_but_the_output():
    (row,) = (row for row in sonderby2016_ladder.TABLE.values() if row.ladder)
    vae = sonderby2016_ladder.program(row, torch.rand(30, 1, 28, 28))
    layers = [m for m in vae.modules() if not [*m.children()]]
    after = Counter(
        type(b) is torch.nn.BatchNorm1d
        for a, b in itertools.pairwise(layers)
        if isinstance(a, torch.nn.Linear)
    )
    assert after == {True: 2 + 4 * 3 + 5 * 2 + 5, False: 1}


def test_the_published_active_units_are_in_the_order_of_the_table():
    rows = {title: dict(row.published) for title, row in sonderby2016_ladder.TABLE.items()}
    assert [row["active_units"] for row in rows.values()] == [21, 37, 61, 81]
    assert sonderby2016_ladder.in_order(rows)
    rows["VAE"]["active_units"] = 37
    assert not sonderby2016_ladder.in_order(rows)


def test_units_are_active_by_their_kl_in_the_ladder_paper():
    vae = VAE.assemble((4,), (3,))
    with torch.no_grad():
        for parameter in vae.posterior.network.parameters():
            parameter.zero_()
        # KLs of 0.02, 0.005 and 0 nats, from means that are the same for all data.
        vae.posterior.offset[0] = torch.tensor([0.2, 0.1, 0.0])
    x = torch.bernoulli(torch.full((10, 4), 0.5))
    found = study.judge(vae, x, num_samples=5, count=sonderby2016_ladder.with_kl)
    assert found["active_units"] == 1
    assert study.judge(vae, x, num_samples=5)["active_units"] == 0


def test_omniglot_is_split_by_drawers(data_root):
    images = he2019_lagging.data(data_root, 23_000)
    seen = {name: getattr(images, name).x for name in ("train", "validation", "test")}
    drawers = {name: set(x[:, 0, 0, 1].tolist()) for name, x in seen.items()}
    assert drawers["test"] == {15, 16, 17, 18, 19}
    assert drawers["train"] | drawers["validation"] == set(range(15))
    keys = [tuple(x) for each in seen.values() for x in each[:, 0, 0, :2].tolist()]
    assert len(set(keys)) == len(keys) == 8 * 20
    assert len(seen["validation"]) == 8 * 15 * 1_345 // 24_345


def test_the_decoder_for_omniglot_sees_the_pixels_before_and_z():
    x = torch.bernoulli(torch.full((2, 1, 28, 28), 0.3))
    for row in he2019_lagging.TABLE.values():
        vae = he2019_lagging.program(row, torch.rand(20, 1, 28, 28))
        z = torch.zeros(1, 32, requires_grad=True)
        seen = x[:1].clone().requires_grad_()
        logits = vae.likelihood(z)._all_logits(seen.flatten(1))
        by_pixels, by_z = torch.autograd.grad(logits[0, 400], (seen, z))
        assert bool(by_pixels.flatten()[:400].any())
        assert not bool(by_pixels.flatten()[400:].any())
        assert bool(by_z.all())


def test_the_weight_is_annealed_over_ten_epochs():
    paper = he2019_lagging.SCALES["paper"]
    weight = he2019_lagging.annealed(paper).beta
    seen = []
    for epoch in (0, 5, 10, 60):
        weight.advance(epoch / paper.epochs)
        seen.append(weight.value.item())
    assert seen == pytest.approx([0.1, 0.55, 1.0, 1.0])


@pytest.mark.slow
def test_the_prior_of_the_delta_vae_keeps_its_rate(records):
    rows = records["he2019_lagging"]["rows"]
    assert rows["delta"]["rate_nats"] > 5.0 > rows["plain"]["rate_nats"]


@pytest.mark.slow
def test_both_gaps_are_measured_as_in_closed_form(records):
    program = LinearGaussian()
    x = torch.randn(6, 3, dtype=torch.float64) * 1.5
    scale = cremer2018_gaps.SCALES["smoke"]._replace(
        num_samples=1_000, num_updates=100, num_particles=16, num_temperatures=10
    )
    gaps, found = cremer2018_gaps.measure(program, x, scale)
    best = program.best_diagonal_bound(x)
    expected = {
        "approximation": program.log_p(x) - best,
        "amortization": best - program.bound(x),
        "inference": program.log_p(x) - program.bound(x),
    }
    for kind, exact in expected.items():
        assert found[f"{kind}_gap_nats"] == pytest.approx(exact.mean().item(), abs=0.05)
        torch.testing.assert_close(
            cremer2018_gaps.of_each(gaps, kind).mean().item(), found[f"{kind}_gap_nats"]
        )
    for row in records["cremer2018_gaps"]["rows"].values():
        parts = row["approximation_gap_nats"] + row["amortization_gap_nats"]
        assert row["inference_gap_nats"] == pytest.approx(parts)


def test_gaps_are_compared_datum_by_datum():
    log_p = torch.zeros(3)
    small = evaluation.Gaps(log_p, torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-4.0] * 3))
    large = evaluation.Gaps(log_p, torch.tensor([-2.0, -3.0, -4.0]), torch.tensor([-4.0] * 3))
    (found,) = cremer2018_gaps.compared({"flow": small, "diagonal": large})
    assert (found["gap"], found["smaller"], found["larger"]) == (
        "approximation",
        "flow",
        "diagonal",
    )
    assert found["less_nats"] == 1.0
    assert found["less_nats_standard_error"] == 0.0


@pytest.mark.parametrize(("title", "width"), [("diagonal", 200), ("diagonal, wide encoder", 500)])
def test_the_guides_of_the_gaps_are_as_wide_as_published(title, width):
    vae = cremer2018_gaps.program(cremer2018_gaps.TABLE[title], torch.rand(20, 784))
    expected = latent(784, width, width, 50) + dense(50, 200, 200, 784)
    assert sum(p.numel() for p in vae.parameters()) == expected
    assert sum(isinstance(m, torch.nn.ELU) for m in vae.modules()) == 4


def test_a_hierarchy_has_the_layers_of_its_title():
    for title, row in topdown.TABLE.items():
        sides = [shape[1] for shape in row.latent_shapes]
        assert f", {len(sides)} layer" in title
        assert sides == sorted(sides, reverse=True)
        assert sides[0] <= {"mnist": 14, "cifar10": 16}[row.data]


def test_images_of_cifar10_are_read_as_they_are_stored(data_root):
    images = topdown.cifar10(data_root, 20)
    expected = np.concatenate([colours(part, 8) for part in range(10)]).transpose(0, 3, 1, 2)
    assert images.train.x.numpy().tolist() == expected[:20].tolist()
    assert images.validation.x.numpy().tolist() == expected[-8:].tolist()
    assert images.test.x.numpy().tolist() == colours(50, 8).transpose(0, 3, 1, 2).tolist()


@pytest.mark.slow
def test_colours_are_judged_in_bits_and_binary_images_in_nats(records):
    rows = records["topdown"]["rows"]
    colour, binary = rows["CIFAR-10, 3 layers"], rows["MNIST, 1 layer"]
    assert not {"nll_nats", "elbo_nats"} & colour.keys()
    assert not {"bits_per_dim", "elbo_bits_per_dim"} & binary.keys()
    # The bound is the sum of its parts, which are in nats, and bounds the other from above.
    nats = colour["rate_nats"] + colour["distortion_nats"]
    assert colour["elbo_bits_per_dim"] == pytest.approx(nats / (3072 * math.log(2)))
    assert 7.0 < colour["bits_per_dim"] < colour["elbo_bits_per_dim"]
    assert colour["bits_per_dim_standard_error"] < 1.0
