"""The experiment on speed: contenders train the same bound, and what is printed was measured."""

from __future__ import annotations

import json
import math
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from quick import some
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

import contenders
import epoch
import peers
import speed
from programs import PROGRAMS, Contender, Convolutions, Ladder, NotHere, Perceptrons, Program
from worker import Block, Worker

TINY = {
    "MLP": Perceptrons(4, (16,), 3, 16, num_data=160),
    "IWAE": Perceptrons(4, (12, 12), 3, 16, 5, num_data=160),
    "convolutional": Convolutions(4, (4, 8), 3, 16, num_data=160),
    "ladder": Ladder(4, (12,), 3, 16, num_data=160, layers=(4, 3)),
}
ONE_LATENT = {name: program for name, program in TINY.items() if name != "ladder"}
COMPILED = [name for name, c in speed.CONTENDERS.items() if c.uncompiled is not None]
tiny = pytest.mark.parametrize("program", TINY.values(), ids=TINY)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def rows_of(program: Program) -> torch.Tensor:
    return torch.from_numpy(program.data())[: program.batch].to(torch.get_default_dtype())


# ---------------------------------------------------------------------------- the contenders


@pytest.mark.parametrize("program", ONE_LATENT.values(), ids=ONE_LATENT)
@pytest.mark.usefixtures("double")
def test_the_bound_by_hand_is_that_of_the_distributions(program):
    bound, x = contenders.Bound(program), rows_of(program)
    torch.manual_seed(1)
    found = bound(x)
    torch.manual_seed(1)
    loc, log_scale = bound.encoder(x).chunk(2, -1)
    q = dist.Normal(loc, log_scale.exp()).to_event(1)
    z = q.mean + q.stddev * torch.randn(program.particles, *loc.shape)
    likelihood = dist.Bernoulli(logits=bound.decoder(z)).to_event(1)
    prior = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
    log_w = likelihood.log_prob(x) + prior.log_prob(z) - q.log_prob(z)
    expected = -(log_w.exp().mean(0).log()).sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


@pytest.mark.usefixtures("double")
def test_the_bound_of_a_ladder_by_hand_is_that_of_the_distributions():
    program = TINY["ladder"]
    bound, x = contenders.LadderBound(program), rows_of(program)
    torch.manual_seed(1)
    found = bound(x)
    torch.manual_seed(1)
    states = [x]
    for upward in bound.upward:
        states.append(torch.nn.functional.silu(upward(states[-1])))
    evidence = [
        dist.Normal(loc, log_scale.exp())
        for linear, state in zip(bound.evidence, states[1:], strict=True)
        for loc, log_scale in [linear(state).chunk(2, -1)]
    ]
    top = evidence[1].mean + evidence[1].stddev * torch.randn(1, 16, 3)
    log_w = (dist.Normal(0.0, 1.0).log_prob(top) - evidence[1].log_prob(top)).sum(-1)
    loc, log_scale = bound.priors[0](top).chunk(2, -1)
    prior = dist.Normal(loc, log_scale.exp())
    precisions = evidence[0].variance ** -1, prior.variance**-1
    mean = evidence[0].mean * precisions[0] + prior.mean * precisions[1]
    q = dist.Normal(mean / sum(precisions), sum(precisions) ** -0.5)
    z = q.mean + q.stddev * torch.randn(1, 16, 4)
    log_w = log_w + (prior.log_prob(z) - q.log_prob(z)).sum(-1)
    log_w = log_w + dist.Bernoulli(logits=bound.decoder(z)).to_event(1).log_prob(x)
    torch.testing.assert_close(found, -log_w.sum(), rtol=1e-12, atol=0.0)


@tiny
@pytest.mark.usefixtures("double")
def test_the_step_in_one_graph_is_backward_and_adam(program):
    one, other, x = *(contenders.bound_of(program) for _ in range(2)), rows_of(program)
    other.load_state_dict(one.state_dict())
    adam = torch.optim.Adam(other.parameters(), lr=1e-3)
    step = contenders.whole_step(one)
    for seed in range(4):
        torch.manual_seed(seed)
        found = step(x)
        torch.manual_seed(seed)
        adam.zero_grad()
        expected = other(x)
        expected.backward()
        adam.step()
        torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=0.0)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_floor_multiplies_what_a_step_multiplies(program):
    program = replace(program, batch=min(program.batch, 32))
    module, objective = contenders.vae(program), contenders.objective(program)
    x = rows_of(program).unflatten(-1, (1, program.side, program.side))
    objective.differentiable_loss(module.model, module.guide, x)
    with FlopCounterMode(display=False) as of_step:
        objective.differentiable_loss(module.model, module.guide, x).backward()
    products = contenders.products_of(program)
    with FlopCounterMode(display=False) as of_floor:
        for product in products:
            product()
    assert of_floor.get_total_flops() == of_step.get_total_flops()


def test_the_floor_of_a_perceptron_counts_as_on_paper():
    # Each weight is met once forward and once for its gradient; all but the first go back further.
    program = PROGRAMS["MNIST, MLP 784-400-20, batch 128"]
    weights = 784 * 400 + 400 * 40 + 20 * 400 + 400 * 784
    products = contenders.products_of(program)
    with FlopCounterMode(display=False) as counted:
        for product in products:
            product()
    assert counted.get_total_flops() == 2 * 128 * (3 * weights - 784 * 400)


def test_the_curve_against_data_leaves_the_start_out(monkeypatch):
    def runners(program, threads, stack):
        def run(num):
            return Block(3.0 + 1e-4 * num * program.num_data, 0.0, 0.0, program.num_data / 2)

        return dict.fromkeys(epoch.CONTENDERS, run)

    monkeypatch.setattr(epoch, "_runners", runners)
    for line in epoch.curve(threads=1)["contenders"].values():
        assert line["seconds"] == pytest.approx([1e-4 * size for size in line["size"]])
        assert line["peak_mib"] == [size / 2 for size in line["size"]]


def loss_after(contender: Contender, program: Program, epochs: int = 15) -> float:
    torch.manual_seed(0)
    return contender.build(program)(epochs)


def agree(one: float, other: float) -> bool:
    return abs(one - other) < 0.04 * other


@pytest.mark.parametrize("name", some(TINY, "IWAE"))
def test_all_contenders_come_to_the_same_loss(name):
    program = TINY[name]
    losses = {
        name: loss_after(contender, program)
        for name, contender in contenders.CONTENDERS.items()
        if contender.runs(program) and name not in COMPILED and not contender.fast
    }
    expected = losses["by hand"]
    assert len(losses) >= 5
    assert all(agree(found, expected) for found in losses.values() if not math.isnan(found)), losses


@pytest.mark.parametrize("name", [name for name in epoch.CONTENDERS if "compiled" not in name])
def test_epochs_end_to_end_come_to_an_end(name):
    found = epoch.CONTENDERS[name].build(TINY["MLP"])(3)
    assert math.isfinite(found)


def test_a_contender_without_a_kl_would_be_seen(monkeypatch):
    program = TINY["MLP"]
    expected = loss_after(contenders.CONTENDERS["by hand"], program)

    class NoKL(contenders.Bound):
        def forward(self, x):
            logits = self.decoder(self.encoder(x).chunk(2, -1)[0])
            return -dist.Bernoulli(logits=logits).log_prob(x).sum()

    monkeypatch.setattr(contenders, "Bound", NoKL)
    assert not agree(loss_after(contenders.CONTENDERS["by hand"], program), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMPILED, *peers.CONTENDERS])
@tiny
def test_compiled_contenders_and_peers_come_there_too(name, program, tmp_path):
    contender = speed.CONTENDERS[name]
    if not contender.runs(program):
        pytest.skip("it is not written for this program")
    try:
        with Worker(contender, program, 1, tmp_path) as worker:
            found = worker.run(15).loss
    except NotHere as reason:
        pytest.skip(str(reason))
    if not math.isnan(found):
        assert agree(found, loss_after(contenders.CONTENDERS["by hand"], program))


def test_contenders_travel_to_their_processes_and_name_what_exists():
    assert str(pickle.loads(pickle.dumps(speed.CONTENDERS))) == str(speed.CONTENDERS)
    assert {c.uncompiled for c in speed.CONTENDERS.values()} - {None} <= set(speed.CONTENDERS)
    for program in PROGRAMS.values():
        names = {name for name, c in speed.CONTENDERS.items() if c.runs(program)}
        assert names >= {speed.PYRO, speed.FLOOR, "pyro_vae, compiled"}


# ---------------------------------------------------------------------------- the processes

FAKES = """
import os, time
from programs import NotHere

def sleeps(program):
    print("what a toolkit says at its start")
    def epochs(num):
        time.sleep(0.002 * num)
        return 7.0 + num
    return epochs

def takes_memory(program):
    return lambda num: float(bytearray(64 << 20)[0])

def is_missing(program):
    raise NotHere("no module named fake")

def fails_later(program):
    return lambda num: 1.0 / 0

def crashes(program):
    os.write(2, b"a segment is at fault")
    os._exit(3)
"""


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "fakes.py").write_text(FAKES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        import fakes

        yield fakes
        sys.modules.pop("fakes")


def worker_of(build, folder) -> Worker:
    return Worker(Contender(build, (Perceptrons,)), TINY["MLP"], 1, folder)


def test_a_worker_runs_what_it_is_told_and_says_what_it_took(fakes, tmp_path):
    with worker_of(fakes.sleeps, tmp_path) as worker:
        short, long = worker.run(1), worker.run(20)
    assert (short.loss, long.loss) == (8.0, 27.0)
    assert long.seconds >= 0.04 > long.processor_seconds


def test_a_workers_memory_is_its_own(fakes, tmp_path):
    ours = torch.zeros(48 << 20)  # 192 MiB of this process, which its children must not report
    with worker_of(fakes.takes_memory, tmp_path) as worker:
        block = worker.run(1)
    assert 60 < block.peak_mib - worker.baseline_mib < 80
    assert worker.baseline_mib < ours.numel() * 4 / 2**20


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        ("is_missing", "no module named fake"),
        ("fails_later", "ZeroDivisionError: float division by zero"),
        ("crashes", "its process ended with 3: a segment is at fault"),
    ],
)
def test_a_worker_that_fails_says_why(fakes, tmp_path, fake, message):
    with pytest.raises(NotHere, match=message), worker_of(getattr(fakes, fake), tmp_path) as worker:
        worker.run(1)


# ---------------------------------------------------------------------------- the table


def timed(*times: float, compile_seconds: float = 0.0, loss: float = 1.0) -> speed.Timed:
    return speed.Timed(compile_seconds, None, loss, 100.0, 200.0, list(times))


def test_rows_are_ratios_of_medians():
    measured = {
        speed.PYRO: timed(8.0, 6.0, 100.0),
        "pyro_vae, recorded": timed(4.0, 4.0, 4.0, compile_seconds=0.5),
        "pyro_vae, compiled": timed(2.0, 1.0, 3.0, compile_seconds=10.5),
        "by hand": timed(1.0, 1.0, 1.0),
        "by hand, step compiled": timed(1.5, 1.5, 1.5, compile_seconds=3.0),
        "pythae": timed(6.0, 6.0, 6.0),
        "NumPyro, jitted loop": timed(3.0, 3.0, 3.0),
        "products alone": timed(0.5, 0.5, 0.5, loss=math.nan),
    }
    rows = speed.rows(measured, speed.CONTENDERS)
    ours = rows["pyro_vae, compiled"]
    assert (ours["median_ms"], ours["quartiles_ms"]) == (2.0, (1.5, 2.5))
    assert (ours["times_pyro"], ours["times_best_peer"], ours["over_floor"]) == (4.0, 1.5, 4.0)
    assert ours["break_even_steps"] == pytest.approx(10.0 / 0.002)
    assert rows["by hand, step compiled"]["break_even_steps"] is None  # it is slower
    assert rows["pythae"]["times_best_peer"] == 0.5
    assert rows["products alone"]["loss_nats"] is None
    assert len(list(speed.table(rows))) == 2 + len(rows)


def test_rows_without_pyro_peers_or_floor_leave_their_ratios_empty():
    (row,) = speed.rows({"by hand": timed(1.0)}, speed.CONTENDERS).values()
    assert row["times_pyro"] is row["times_best_peer"] is row["over_floor"] is None


def test_one_command_writes_the_record_and_draws_the_plot(fakes, tmp_path, monkeypatch, capsys):
    fake = {
        name: Contender(build, (Perceptrons,))
        for name, build in {
            speed.PYRO: fakes.sleeps,
            "pyro_vae, recorded": fakes.sleeps,
            "pixyz": fakes.is_missing,
        }.items()
    }
    monkeypatch.setattr(speed, "CONTENDERS", fake)
    monkeypatch.setattr(speed, "PROGRAMS", {"tiny": TINY["MLP"], "other": TINY["IWAE"]})
    monkeypatch.setattr(speed, "_OF_CURVES", (speed.PYRO,))
    monkeypatch.setattr(speed, "_BLOCK_SECONDS", 0.01)
    monkeypatch.setattr(speed, "_CURVES", {"batch": ("tiny", {4: TINY["MLP"], 8: TINY["MLP"]})})
    seconds = {"program": "tiny", "contenders": {"fit": {"size": [1, 2], "seconds": [0.1, 0.2]}}}
    monkeypatch.setattr(speed.epoch, "curve", lambda threads: seconds)
    monkeypatch.setattr(speed.peers, "CONTENDERS", {"pixyz": fake["pixyz"]})
    speed.main(["--rounds", "2", "--programs", "tiny", "--name", str(tmp_path / "speed")])
    found = json.loads((tmp_path / "speed.json").read_text())
    assert list(found["programs"]) == ["tiny"]
    assert set(found["programs"]["tiny"]) == {speed.PYRO, "pyro_vae, recorded"}
    assert 0.2 < found["programs"]["tiny"][speed.PYRO]["median_ms"] < 2.0  # 2 ms are 10 batches
    assert found["left_out"] == {"pixyz": "no module named fake"}
    assert found["environment"]["torch"] == torch.__version__
    assert (tmp_path / "speed.png").stat().st_size > 5_000
    assert "left out: pixyz" in capsys.readouterr().out
    speed.main(["--rounds", "2", "--curves", "--name", str(tmp_path / "curves")])
    found = json.loads((tmp_path / "curves.json").read_text())
    assert found["curves"]["batch"]["contenders"][speed.PYRO]["size"] == [4, 8]
    assert found["curves"]["data"] == seconds
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    speed.main(["--curves", "--axes", "data", "--name", str(tmp_path / "data")])
    assert json.loads((tmp_path / "data.json").read_text())["curves"] == {"data": seconds}


def test_a_name_that_fits_nothing_is_refused():
    with pytest.raises(SystemExit, match="no name has any of cifar"):
        speed.main(["--programs", "cifar"])
    with pytest.raises(SystemExit, match="--axes data: these are of --curves"):
        speed.main(["--axes", "data"])
    with pytest.raises(SystemExit, match="--data_root FOLDER"):
        speed.main(["--epoch"])
