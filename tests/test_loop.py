"""``fit``: what it changes, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import math
import os
import signal
import sys
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import VAE, fit
from pyro_vae.components import MLP, DiagonalNormal, Normal
from pyro_vae.datasets import from_arrays
from pyro_vae.engine import (
    Binarize,
    CheckpointError,
    Interrupted,
    TrainingError,
    load_weights,
    resolve_device,
)
from pyro_vae.engine.defaults import default_objective
from pyro_vae.inference import AnalyticELBO, Constant, Cosine, Probe, Program, ProgramError

NETWORK = partial(MLP, hidden=(8,))


def normal_data(num=50):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(num, 2, generator=generator)
    x = z @ torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
    return x + 0.1 * torch.randn(num, 3, generator=generator)


def small_vae(seed=0, **parts):
    torch.manual_seed(seed)
    return VAE.assemble((3,), (2,), likelihood=Normal, network=NETWORK, **parts)


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(1, 3)
        self.q = nn.Linear(4, 2)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.loc(y[:, None].float()) + z.sum(-1, keepdim=True)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            loc = self.q(torch.cat([x, y[:, None].float()], 1))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def bits(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_training_raises_the_bound_and_every_parameter_moves():
    vae = small_vae()
    before = {n: p.detach().clone() for n, p in vae.named_parameters()}
    data = from_arrays(normal_data(500))
    start = fit(copy.deepcopy(vae), data, epochs=1, batch_size=64).history[0]
    adam = partial(torch.optim.Adam, lr=3e-2)
    done = fit(vae, data, epochs=10, batch_size=64, optim=adam, engine="eager")
    assert done.history[-1]["validation_elbo_nats"] > start["validation_elbo_nats"] + 0.2
    assert [r["epoch"] for r in done.history] == list(range(1, 11))
    assert done.steps == 10 * math.ceil(400 / 64)
    assert all(not torch.equal(p, before[n]) for n, p in vae.named_parameters())


def test_a_record_is_the_elbo_split_into_rate_and_distortion():
    record = fit(small_vae(), normal_data(), epochs=1, batch_size=10).history[0]
    total = record["validation_rate_nats"] + record["validation_distortion_nats"]
    assert record["validation_elbo_nats"] == pytest.approx(-total)


def test_the_reported_training_number_is_the_bound_per_datum_whatever_the_batch_size():
    frozen = partial(torch.optim.SGD, lr=1e-30)
    data = from_arrays(normal_data(500))
    numbers = [
        fit(small_vae(), data, epochs=1, batch_size=size, optim=frozen).history[0]["train_nats"]
        for size in (13, 400)
    ]
    assert numbers == pytest.approx([numbers[0]] * 2, abs=0.15)


@pytest.mark.parametrize(
    "objective",
    [Trace_ELBO(), TraceMeanField_ELBO(), TraceGraph_ELBO(), RenyiELBO(num_particles=3),
     Trace_ELBO(num_particles=2, vectorize_particles=True)],
    ids=lambda o: f"{type(o).__name__}{o.num_particles}",
)  # fmt: skip
def test_any_elbo_trains_and_keeps_the_object_as_it_was(objective):
    nesting = objective.max_plate_nesting
    vae = small_vae()
    before = bits(vae)
    done = fit(vae, normal_data(), objective=objective, epochs=2, batch_size=16)
    assert math.isfinite(done.history[-1]["train_nats"])
    assert not torch.equal(bits(vae), before)
    assert objective.max_plate_nesting == nesting


class DiscreteLatent(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 3), nn.Linear(3, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


class NoClosedForm(DiscreteLatent):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(5.0, torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


class ScaledModel(NoClosedForm):
    def model(self, x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("program", "expected"),
    [(small_vae, TraceMeanField_ELBO), (DiscreteLatent, Trace_ELBO), (NoClosedForm, Trace_ELBO),
     (ScaledModel, AnalyticELBO)],
)  # fmt: skip
def test_the_kl_is_in_closed_form_by_default_only_where_it_has_one(program, expected):
    program = program()
    both = Program(program.model, program.guide)
    objective = default_objective(Probe(both, normal_data()))
    assert type(objective) is expected
    assert fit(program, normal_data(), epochs=1, batch_size=16).epochs == 1


def test_same_seed_same_bits_other_seed_other_bits():
    runs = []
    for seed in (3, 3, 4):
        vae = small_vae()
        done = fit(vae, normal_data(), epochs=3, batch_size=16, seed=seed)
        runs.append((bits(vae), done.history))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], runs[2][0])


def test_the_process_is_left_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    settings = pyro.settings.get()
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    fit(small_vae_after_seed := small_vae(), normal_data(), epochs=1, batch_size=16)
    assert small_vae_after_seed.training
    torch.manual_seed(5)
    fit(copy.deepcopy(small_vae_after_seed), normal_data(), epochs=1, batch_size=16, seed=9)
    assert torch.equal(torch.rand(3), expected)
    assert pyro.settings.get() == settings
    assert len(pyro.get_param_store()) == 0
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_two_programs_never_touch_each_other():
    a, b = small_vae(), small_vae(1)
    untouched = bits(b)
    fit(a, normal_data(), epochs=1, batch_size=16)
    assert torch.equal(bits(b), untouched)
    trained = bits(a)
    fit(b, normal_data(), epochs=1, batch_size=16)
    assert torch.equal(bits(a), trained)
    assert not torch.equal(bits(b), untouched)


def test_model_and_guide_may_be_plain_functions():
    decoder, encoder = nn.Linear(2, 3), nn.Linear(3, 2)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    before = bits(decoder)
    adam = partial(torch.optim.Adam, lr=1e-2)
    done = fit(model, guide, normal_data(300), epochs=6, batch_size=64, optim=adam)
    assert done.history[-1]["validation_elbo_nats"] > done.history[0]["validation_elbo_nats"]
    assert not torch.equal(bits(decoder), before)
    assert not torch.equal(pyro.param("scale").detach(), torch.ones(2))


def test_a_subsampled_plate_reports_nats_per_datum():
    class Subsampled(nn.Module):
        def __init__(self, full_size):
            super().__init__()
            self.vae, self.full_size = small_vae(), full_size

        def model(self, x):
            with pyro.plate("data", self.full_size or len(x), subsample=x):
                z = pyro.sample("z", self.vae.prior())
                pyro.sample("x", self.vae.likelihood(z), obs=x)

        def guide(self, x):
            with pyro.plate("data", self.full_size or len(x), subsample=x):
                pyro.sample("z", self.vae.posterior(x))

    histories = [
        fit(Subsampled(size), normal_data(), epochs=2, batch_size=10).history
        for size in (None, 40, 4000)
    ]
    for history in histories[1:]:
        assert history[0]["train_nats"] == pytest.approx(histories[0][0]["train_nats"], rel=1e-4)


def test_a_program_that_takes_labels_gets_them():
    x, y = normal_data(), torch.arange(50) % 2
    done = fit(Labelled(), (x, y), epochs=2, batch_size=16)
    assert len(done.history) == 2
    with pytest.raises(ValueError, match=r"takes 'y', which stands for labels, .* they have x;"):
        fit(Labelled(), x, epochs=1, batch_size=16)


def test_the_learning_rate_follows_its_schedule():
    rates = [r["learning_rate"] for r in _history(schedule=Cosine())]
    expected = [1e-3 * (1 + math.cos(math.pi * (3 * e - 1) / 12)) / 2 for e in range(1, 5)]
    assert rates == pytest.approx(expected)
    assert [r["learning_rate"] for r in _history(schedule=Constant())] == [1e-3] * 4


def _history(**options):
    return fit(small_vae(), normal_data(), epochs=4, batch_size=16, **options).history


def climbing_then_falling(progress):
    return 1.0 if progress < 0.05 else -1.0


def test_patience_stops_early_and_goes_back_to_the_best_weights():
    options = {"batch_size": 25, "optim": partial(torch.optim.SGD, lr=2e-4)}
    vae = small_vae()
    done = fit(
        vae, normal_data(250), epochs=100, patience=3, schedule=climbing_then_falling, **options
    )
    assert done.epochs == done.best_epoch + 3 < 100
    best = max(done.history, key=lambda r: r["validation_elbo_nats"])
    assert best["epoch"] == done.best_epoch
    # The weights are those of the best epoch: a run that ends there has the same.
    shorter = small_vae()
    fit(
        shorter, normal_data(250), epochs=done.best_epoch,
        schedule=lambda t: climbing_then_falling(t * done.best_epoch / 100), **options,
    )  # fmt: skip
    assert torch.equal(bits(vae), bits(shorter))


@pytest.mark.parametrize("num_replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_keeps_its_best_weights_and_its_last(tmp_path, num_replicas):
    def trained(**options):
        vae, options = small_vae(), {"epochs": 9, "num_replicas": num_replicas, **options}
        done = fit(
            vae, normal_data(125), batch_size=25, optim=partial(torch.optim.SGD, lr=2e-4),
            schedule=lambda t: climbing_then_falling(t * options["epochs"] / 100),
            engine="eager", **options,
        )  # fmt: skip
        return vae, done

    (best, done), (last, ends) = trained(out=tmp_path), trained(weights="last")
    assert (done.weights, done.evaluated_epoch) == ("best", done.best_epoch)
    assert (ends.weights, ends.evaluated_epoch) == ("last", 9)
    assert done.history == ends.history
    assert done.best_epoch < 9
    shorter, _ = trained(epochs=done.best_epoch, weights="last")
    assert torch.equal(bits(best), bits(shorter))
    assert not torch.equal(bits(best), bits(last))
    folder = tmp_path if num_replicas == 1 else tmp_path / "replica-0"
    for name, expected in (("best", best), ("last", last)):
        found = small_vae()
        progress = load_weights(found.model, found.guide, folder, normal_data(3), weights=name)
        assert progress["weights"] == name
        assert torch.equal(bits(found), bits(expected))


def test_a_run_starts_from_the_best_weights_of_another(tmp_path):
    first = small_vae()
    fit(first, normal_data(), epochs=3, batch_size=16, out=tmp_path / "first", engine="eager")
    still = partial(torch.optim.SGD, lr=0.0)
    options = {"batch_size": 16, "engine": "eager", "out": tmp_path / "second", "optim": still}
    other = small_vae()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    done = fit(other, normal_data(), epochs=1, init_from=tmp_path / "first", **options)
    assert torch.equal(bits(other), bits(first))
    assert done.init_from == f"the best weights of {tmp_path / 'first'}, of epoch 3"
    # Once there is a checkpoint, the run that it began with is asked no more.
    (tmp_path / "first").rename(tmp_path / "gone")
    options = {**options, "epochs": 1, "resume": True}
    again = fit(small_vae(), normal_data(), init_from=tmp_path / "first", **options)
    assert again.init_from == done.init_from


def test_weights_that_do_not_fit_are_not_started_from(tmp_path):
    fit(small_vae(), normal_data(), epochs=1, batch_size=16, out=tmp_path / "run", engine="eager")
    wider = VAE.assemble((3,), (2,), likelihood=Normal, network=partial(MLP, hidden=(9,)))
    before = bits(wider)
    with pytest.raises(CheckpointError, match=r"cannot start from '.*run'.*of another shape"):
        fit(wider, normal_data(), epochs=1, batch_size=16, init_from=tmp_path / "run")
    assert torch.equal(bits(wider), before)
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        fit(wider, normal_data(), epochs=1, batch_size=16, init_from=tmp_path / "nothing")


def test_weights_that_no_run_has_are_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match=r"weights='newest': choose from 'best', 'last'"):
        fit(small_vae(), normal_data(), weights="newest")


def test_no_epochs_train_nothing():
    vae = small_vae()
    before = bits(vae)
    done = fit(vae, normal_data(), epochs=0, batch_size=16)
    assert (done.epochs, done.steps, done.history, done.weights) == (0, 0, [], "last")
    assert torch.equal(bits(vae), before)


def test_clipping_bounds_the_step():
    vae, clipped = small_vae(), small_vae()
    sgd = partial(torch.optim.SGD, lr=1.0)
    fit(clipped, normal_data(), epochs=1, batch_size=40, optim=sgd, clip_norm=1e-3)
    moved = (bits(clipped) - bits(vae)).norm().item()
    assert moved == pytest.approx(1e-3 * 40, rel=1e-3)


class Exploding(nn.Module):
    """A VAE whose decoder returns NaN from the fifth call on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.calls = 0

    def model(self, x):
        self.calls += self.training
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ self.weight
            loc = loc * math.nan if self.calls > 5 else loc
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2] * 0.1, 1.0).to_event(1))


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path):
    program = Exploding()
    with pytest.raises(TrainingError, match=r"nan at step 5 .*site 'x' \(log p\).*last good"):
        fit(program, normal_data(), epochs=9, batch_size=16, out=tmp_path, checkpoint_seconds=0)
    assert torch.isfinite(program.weight).all()
    kept = Exploding()
    progress = load_weights(kept.model, kept.guide, tmp_path, normal_data(3), weights="last")
    assert progress["step"] == 4
    assert torch.equal(kept.weight, program.weight)


def test_a_signal_stops_at_the_end_of_a_step_with_its_checkpoint(tmp_path):
    class Interrupting(Exploding):
        def model(self, x):
            if self.calls == 3 and self.training:
                os.kill(os.getpid(), signal.SIGTERM)
            super().model(x)

    with pytest.raises(Interrupted, match="resume=True") as stopped:
        fit(Interrupting(), normal_data(), epochs=9, batch_size=16, out=tmp_path)
    assert stopped.value.signum == signal.SIGTERM
    program = Exploding()
    progress = load_weights(program.model, program.guide, tmp_path, normal_data(3))
    assert progress["step"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 41}, "41.*40"),
        ({"patience": 0}, "patience=0"),
        ({"seed": -1}, "seed=-1"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds=-1"),
        ({"device": "cuda:99"}, "cuda:99.*choose from"),
        ({"device": "abacus"}, "abacus.*choose from"),
        ({"resume": True}, "needs out"),
        ({"observation": Binarize(255)}, "from 0 to 255"),
    ],
    ids=str,
)
def test_unusable_settings_are_refused_before_training(options, message):
    vae = small_vae()
    before = bits(vae)
    with pytest.raises(ValueError, match=message):
        fit(vae, normal_data(), **{"epochs": 1, "batch_size": 16, **options})
    assert torch.equal(bits(vae), before)


def test_data_outside_the_support_are_refused_before_training():
    torch.manual_seed(0)
    vae = VAE.assemble((3,), (2,), network=NETWORK)
    with pytest.raises(ValueError, match=r"Bernoulli.*0 or 1.*binarise"):
        fit(vae, torch.rand(40, 3), epochs=1, batch_size=16)


def test_a_program_without_parameters_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1], 1.0).expand([len(x), 3]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ProgramError, match="no trainable parameters"):
        fit(model, guide, normal_data(), epochs=1, batch_size=16)


def test_the_device_is_resolved():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


def test_a_learned_prior_and_posterior_train():
    vae = small_vae(prior=DiagonalNormal)
    before = vae.prior.offset.detach().clone()
    fit(vae, normal_data(), epochs=2, batch_size=16)
    assert not torch.equal(vae.prior.offset, before)


def shape_watcher(event_shape, seen):
    """A program of the user's own, of plain layers, that takes data of one shape."""
    size = math.prod(event_shape)
    encoder, decoder = nn.Linear(size, 2), nn.Linear(2, size)

    def model(x):
        pyro.module("decoder", decoder)
        seen.add(tuple(x.shape[1:]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = decoder(z).unflatten(-1, event_shape or (1,))
            loc = loc if event_shape else loc.squeeze(-1)
            p_x = dist.Normal(loc, 1.0).to_event(len(event_shape))
            pyro.sample("x", p_x, obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc = encoder(x.reshape(len(x), -1))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, guide


@pytest.mark.parametrize("event", [(), (3,), (4, 3), (7, 2, 3), (2, 3, 3), (1, 2, 2, 2)])
def test_a_program_of_ones_own_sees_rows_in_the_shape_that_is_given(event) -> None:
    seen: set = set()
    fit(*shape_watcher(event, seen), torch.randn(20, *event), epochs=1, engine="eager")
    assert seen == {event}


def test_images_have_one_channel_to_families_that_do() -> None:
    x = torch.randn(20, 4, 3)
    for event in ((4, 3), (1, 4, 3)):
        vae = VAE.assemble(event, (2,), likelihood=Normal, network=NETWORK)
        fit(vae, x, epochs=1, engine="eager")


# What a person sees -------------------------------------------------------------------------------


def tiny(**options):
    vae = VAE.assemble((3,), (2,), likelihood=Normal, network=partial(MLP, hidden=(3,)))
    return fit(vae, torch.randn(40, 3), epochs=2, batch_size=16, device="cpu", **options)


def test_what_fit_returns_and_data_are_shown_in_a_few_lines():
    data = from_arrays(torch.randn(400, 300), torch.arange(400) % 3)
    for shown in (repr(tiny()), repr(data), repr(data.train), str(tiny())):
        assert len(shown) < 400
        assert shown.count("\n") < 5
    assert "validation_elbo_nats" in repr(tiny())
    assert "float32 (320, 300), labels" in repr(data)


class ZMQInteractiveShell:
    """Named as Jupyter's."""


@pytest.mark.parametrize("progress", [None, True, False])
@pytest.mark.parametrize("notebook", [True, False])
def test_progress_is_shown_where_a_person_watches(monkeypatch, capsys, notebook, progress):
    shell = ZMQInteractiveShell() if notebook else None
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    tiny(progress=progress)
    shown = capsys.readouterr().err
    assert ("epoch 2/2" in shown) == (progress is not False and (notebook or bool(progress)))
    assert ("|" in shown) == (progress is not False and notebook)
