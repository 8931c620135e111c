"""What memory cannot hold is refused before it is asked for, by the option that asks for it."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from command import train
from quick import some
from torch import nn

from pyro_vae import VAE, budget, fit, memory
from pyro_vae.budget import Budget, OverBudgetError
from pyro_vae.cli import main
from pyro_vae.components import MLP, Normal, VampPrior
from pyro_vae.engine import costs
from pyro_vae.engine.progress import TimeLeft
from pyro_vae.evaluation import annealed_importance_sampling, samples
from pyro_vae.inference import IWAE, Program

TOO_LARGE = {
    "a layer": lambda: nn.Linear(64, 10**9),
    "an outer product": lambda: torch.zeros(10**6, 1) * torch.zeros(1, 10**6),
    "a copy of what is repeated": lambda: torch.zeros(3, 1).expand(3, 10**12).clone(),
    "an identity": lambda: torch.eye(10**6),
    "noise": lambda: torch.randn(10**6, 10**5),
    "a repetition": lambda: torch.zeros(5).repeat(10**10),
    "a product": lambda: torch.zeros(10**6, 2) @ torch.zeros(2, 10**6),
    "draws": lambda: torch.distributions.Normal(0.0, 1.0).sample((10**12,)),
    "a diagonal": lambda: torch.zeros(10**6).diag_embed(),
    "a range": lambda: torch.arange(10**12),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_no_tensor_beyond_memory_is_made(kind):
    with Budget(), pytest.raises(OverBudgetError, match=r"a tensor of shape .* [GT]iB are free"):
        TOO_LARGE[kind]()


@pytest.mark.parametrize(
    "work",
    [
        lambda: copy.deepcopy({"weight": torch.zeros(300, 300)}),
        lambda: torch.zeros(3).expand(10**12, 3) @ torch.zeros(4, 3),
    ],
    ids=["a copy of weights", "shapes that do not fit"],
)
def test_a_look_at_an_operation_prints_nothing_of_torch(work, monkeypatch):
    log = logging.getLogger("torch._subclasses.fake_tensor")
    monkeypatch.setattr(log, "handle", lambda record: pytest.fail(record.getMessage()))
    with Budget(), contextlib.suppress(RuntimeError):
        work()
    assert not log.disabled


def test_views_take_nothing_and_results_are_counted():
    with Budget() as budget:
        x = torch.zeros(3).expand(10**12, 3)
        y = torch.ones(1000)
        del y
        z = torch.ones(500)
    assert x.shape == (10**12, 3)
    assert budget.allocated == 12 + 4000 + 2000
    assert budget.peak == 12 + 4000
    del z


OPTIONS = {
    "--latent 3,20000000000": "--latent 3,20000000000: .*GiB.*lower --latent",
    "--network.hidden 1e12": "--network.hidden 1000000000000: .*lower --network.hidden",
    "--posterior Planar(num_flows=10000000000)": "Planar: num_flows=10000000000: .*give fewer",
    "--prior MixtureOfNormals(1e11)": "num_components=100000000000: .*give fewer",
    "--prior VampPrior(1e8)": "--prior.num_pseudo_inputs 100000000: .*lower --prior.num_pseudo",
    "--objective IWAE(1e11)": "IWAE: num_particles=100000000000: .*give fewer",
    "--prior MixtureOfNormals(30000000)": r"components 30000000: a tensor .* with gradients and",
    "--objective IWAE(10000000)": "num_particles 10000000: a step on 8 data with 10,000,000 part",
    f"--latent {','.join(['2'] * 1500)}": "--latent with 1,500 sizes: more than 20,000 operations",
    f"--network.hidden {','.join(['2'] * 9000)}": "--network.hidden with 9,000 sizes: more than",
    "--likelihood Categorical(1e11)": "Categorical: num_categories=100000000000: .*give fewer",
}


@pytest.mark.parametrize(
    "line", some(OPTIONS, *(line for line in OPTIONS if "," not in line or "20000000000" in line))
)
def test_a_program_beyond_memory_is_refused_by_its_option(line, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**30)
    assert train("--out", tmp_path / "run", *line.split(" ")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(OPTIONS[line], said), said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_flow_of_a_thousand_million_steps_is_refused_in_seconds(capsys):
    start = time.process_time()
    assert train("--posterior", "InverseAutoregressive(num_flows=1000000000)") == 2
    assert "lower --posterior.num_flows" in capsys.readouterr().err
    assert time.process_time() - start < 60


def program(width: int = 8) -> VAE:
    return VAE.assemble((20,), (2,), likelihood=Normal, network=partial(MLP, hidden=(width,)))


def test_a_step_is_foreseen_as_it_will_be():
    vae = VAE.assemble((20,), (2,), likelihood=Normal, network=partial(MLP, hidden=(300,)))
    pair, x = Program(vae.model, vae.guide), torch.randn(3, 20)
    few = costs._without_values(pair, (x,), 40)
    with Budget() as run:
        held = [*pair.traces(x[:1].expand(40, 20))]
        for trace in held:
            trace.compute_log_prob()
    encoder, decoder = 20 * 300 + 300 * 4, 2 * 300 + 300 * 40
    assert few.multiplications == run.multiplications == 40 * (encoder + decoder)
    assert few.peak == pytest.approx(run.peak, rel=0.1)
    assert costs._without_values(pair, (x[:, :7],), 40) is None


def test_a_step_of_hours_is_refused_and_one_of_minutes_is_announced(monkeypatch):
    vae, x = program(), torch.randn(3, 20)
    pair = Program(vae.model, vae.guide)
    monkeypatch.setattr(memory, "available", lambda: 2**60)
    costs.foresee(pair, (x,), 8)
    with pytest.raises(OverBudgetError, match=r"multiplications, about .* hours on this CPU"):
        costs.foresee(pair, (x,), 10**9, num_particles=10**6)
    each = costs._without_values(pair, (x,), 8).multiplications
    count = round(60 * costs._EACH_SECOND * torch.get_num_threads() / (3 * each))
    with pytest.warns(UserWarning, match="about 60 s on this CPU"):
        costs.foresee(pair, (x,), 8, num_particles=count)


def test_a_batch_beyond_memory_is_refused_with_one_that_fits(monkeypatch):
    vae = program()
    monkeypatch.setattr(memory, "available", lambda: 2**19)
    with pytest.raises(ValueError, match=r"a step on 2,000 data takes .*lower batch_size, to") as e:
        fit(vae, torch.randn(4000, 20), epochs=1, batch_size=2000, device="cpu")
    fits = int(str(e.value).split("to ")[-1].split(" ")[0].replace(",", ""))
    assert 50 < fits < 2000
    done = fit(vae, torch.randn(400, 20), epochs=1, batch_size=min(fits, 50), device="cpu")
    assert done.steps > 0


def test_parameters_beyond_memory_are_refused_with_the_largest(monkeypatch):
    vae = program(width=3000)
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    with pytest.raises(ValueError, match=r"training .* parameters takes .*weight of \("):
        fit(vae, torch.randn(40, 20), epochs=1, batch_size=4, device="cpu")


def test_particles_beyond_memory_are_refused_in_python():
    with pytest.raises(ValueError, match="particles"):
        fit(program(), torch.randn(40, 20), epochs=1, device="cpu", objective=IWAE(10**12))


def test_what_a_step_takes_is_estimated_well(monkeypatch):
    """The estimate is held against what a real step takes, counted at its peak."""
    from pyro_vae.engine import costs

    layer = nn.Linear(5, 50)
    x = torch.randn(500, 5)

    def step(count: int) -> None:
        layer.zero_grad(set_to_none=True)
        layer(x[:count]).square().sum().backward()

    with Budget() as real:
        step(500)
    sgd = torch.optim.SGD(layer.parameters())
    weights = sum(p.nbytes for p in layer.parameters())
    check = partial(costs.check_step, lambda: dict(layer.named_parameters()), lambda: sgd, step)
    monkeypatch.setattr(memory, "available", lambda: int(1.2 * real.peak) + weights)
    check(500)
    monkeypatch.setattr(memory, "available", lambda: int(0.8 * real.peak) + weights)
    with pytest.raises(OverBudgetError, match="a step on 500 data takes about"):
        check(500)


# Counts -------------------------------------------------------------------------------------------

COUNTS = {
    "train": ("--num-samples", "--epochs", "--batch-size", "--patience"),
    "compare": ("--num-repeats", "--num-rows", "--num-samples", "--epochs", "--warm-up-epochs"),
    "sample": ("--num",),
    "evaluate": ("--num-samples", "--num-temperatures", "--num-chains", "--num-data"),
}


@pytest.mark.parametrize(
    ("command", "option"), [(name, option) for name in COUNTS for option in COUNTS[name]]
)
def test_a_count_that_would_never_end_is_refused_before_anything_runs(command, option, capsys):
    given = [] if command in ("train", "compare") else ["no run"]
    assert main([command, *given, option, "999999999999"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pyro-vae: {option} 999999999999: more than 100,000,000")
    assert said.count("\n") == 1


def test_samples_beyond_memory_are_refused_before_they_are_drawn(monkeypatch):
    vae = program()
    monkeypatch.setattr(memory, "available", lambda: 2**25)
    with pytest.raises(ValueError, match=r"1,000,000 data, .* takes 152.6 MiB, and 32.0 MiB are"):
        samples.prior_samples(vae.model, torch.randn(4, 20), 10**6)


def test_chains_beyond_memory_are_refused_before_they_are_run(monkeypatch):
    vae = program()
    monkeypatch.setattr(memory, "available", lambda: 2**25)
    anneal = partial(annealed_importance_sampling, vae.model, vae.guide, torch.randn(3, 20))
    with pytest.raises(
        ValueError, match=r"num_chains=10000000: moving .* MiB are free; give fewer"
    ):
        anneal(num_chains=10**7, num_temperatures=3)


def test_copies_beyond_memory_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**25)
    with pytest.raises(ValueError, match=r"num_replicas=100,000: .* are free; give fewer"):
        fit(program(), torch.randn(40, 20), epochs=1, device="cpu", num_replicas=100_000)


def test_pseudo_inputs_beyond_memory_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**25)
    with Budget() as taken, pytest.raises(OverBudgetError, match=r"1,000,000 pseudo-inputs of"):
        VAE.assemble(
            (20,), (2,), likelihood=Normal, network=partial(MLP, hidden=(8,)),
            prior=partial(VampPrior, num_pseudo_inputs=10**6), data=torch.randn(40, 20),
        )  # fmt: skip
    assert taken.peak < 2**20


# Time ---------------------------------------------------------------------------------------------


def test_a_long_run_says_once_how_long_it_will_take():
    clock = iter([8.0 * k for k in range(999)])
    left = TimeLeft(1004, now=lambda: next(clock))
    lines = [left.step() for _ in range(900)]
    (line,) = filter(None, lines)
    assert lines.index(line) == 3
    assert "a step takes 8 s: about 2 h 13 min to go" in line


def test_a_short_run_says_nothing_of_its_time():
    clock = iter([8.0 * k for k in range(999)])
    left = TimeLeft(100, now=lambda: next(clock))
    assert not any(left.step() for _ in range(100))


def test_devices_are_counted_before_there_are_tensors_without_data(monkeypatch):
    """Autograd would refuse to work in forked processes; the next test asks that of one."""
    counted = []
    monkeypatch.setattr(budget, "count_devices", lambda: counted.append(torch.empty(()).is_meta))
    with Budget():
        assert counted == [False]


@pytest.mark.slow
def test_a_forked_process_can_train_after_an_operation_was_refused():
    code = (
        "import os, torch\n"
        "from pyro_vae.budget import Budget, OverBudgetError\n"
        "try:\n"
        "    with Budget():\n"
        "        torch.empty(2**20).expand(2**20, 2**20).clone()\n"
        "except OverBudgetError:\n"
        "    pid = os.fork()\n"
        "    torch.ones((), requires_grad=True).backward()\n"
        "    if pid == 0: os._exit(0)\n"
        "    raise SystemExit(os.waitpid(pid, 0)[1])\n"
        "raise SystemExit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
