"""SVI gives pyro.infer.SVI's numbers, keeps programs apart, and takes what Pyro takes."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from laws import ELBOS, NUM_DIMS, NUM_LATENTS, PROGRAMS, Pair, X, functions_with_params
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.engine.svi import SVI
from pyro_vae.inference import ProgramError

programs = pytest.mark.parametrize("build", PROGRAMS.values(), ids=PROGRAMS.keys())
adam = partial(torch.optim.Adam, lr=0.01)

PYRO_FAILS = {
    "two PyroModules": "Pyro exchanges parameters of two PyroModules with equal names",
    "two latents": "Pyro trains no plain module that is used in a method of a PyroModule",
}


def fresh(build) -> Pair:
    """Build a program with the same initial weights as every other time."""
    torch.manual_seed(3)
    return build()


def losses(svi, args, *, num_steps: int = 5, after_each=lambda: None) -> list[float]:
    torch.manual_seed(11)
    found = []
    for _ in range(num_steps):
        found.append(svi.step(*args))
        after_each()
    return found


def pyros_losses(build, optim, elbo, **options) -> list[float]:
    pyro.clear_param_store()
    pair = fresh(build)
    found = losses(pyro.infer.SVI(pair.model, pair.guide, optim, elbo), pair.args, **options)
    pyro.clear_param_store()
    return found


def our_losses(build, optim, elbo, **options) -> list[float]:
    pair = fresh(build)
    return losses(SVI(pair.model, pair.guide, optim, elbo), pair.args, **options)


def assert_same(found: list[float], expected: list[float]) -> None:
    assert found == pytest.approx(expected, rel=1e-10)
    assert len(set(found)) == len(found)


@programs
def test_losses_equal_pyros_for_every_program(build) -> None:
    for name, reason in PYRO_FAILS.items():
        if build is PROGRAMS[name]:
            pytest.skip(reason)
    expected = pyros_losses(build, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert_same(our_losses(build, adam, Trace_ELBO()), expected)


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites:UserWarning")
@pytest.mark.parametrize("elbo", ELBOS.values(), ids=ELBOS.keys())
@pytest.mark.parametrize("name", ["functions, pyro.param", "functions, pyro.module", "VAE, MLP"])
def test_losses_equal_pyros_for_every_elbo(name: str, elbo) -> None:
    build = PROGRAMS[name]
    expected = pyros_losses(build, pyro.optim.Adam({"lr": 0.01}), elbo())
    assert_same(our_losses(build, adam, elbo()), expected)


def rate_by_name(name: str) -> dict[str, float]:
    return {"lr": 0.1 if name.endswith("loc") else 0.01}


def rate_by_module_and_name(module: str, name: str) -> dict[str, float]:
    return {"lr": 0.1 if module.endswith("decoder") or name == "loc" else 0.01}


PYRO_OPTIMS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.02}),
    "SGD": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 0.1, "lrd": 0.5}),
    "by name": lambda: pyro.optim.Adam(rate_by_name),
    "by module and name": lambda: pyro.optim.Adam(rate_by_module_and_name),
    "clip_norm": lambda: pyro.optim.SGD({"lr": 0.05}, {"clip_norm": 0.1}),
    "clip_value": lambda: pyro.optim.SGD({"lr": 0.05}, {"clip_value": 0.02}),
    "clip by name": lambda: pyro.optim.SGD({"lr": 0.05}, lambda *_: {"clip_norm": 0.1}),
}


@pytest.mark.parametrize("optim", PYRO_OPTIMS.values(), ids=PYRO_OPTIMS.keys())
@pytest.mark.parametrize("name", ["functions, pyro.param", "functions, pyro.module"])
def test_pyro_optimisers_are_taken_over(name: str, optim) -> None:
    build = PROGRAMS[name]
    expected = pyros_losses(build, optim(), Trace_ELBO())
    assert_same(our_losses(build, optim(), Trace_ELBO()), expected)


SCHEDULES = {
    "ExponentialLR": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.05}, "gamma": 0.3}
    ),
    "clipped": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5},
        {"clip_norm": 0.1},
    ),
    "StepLR": lambda: pyro.optim.StepLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "step_size": 2, "gamma": 0.1}
    ),
}


@pytest.mark.parametrize("build", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_pyro_schedules_are_taken_over(build) -> None:
    program = functions_with_params
    theirs, ours = build(), build()
    expected = pyros_losses(program, theirs, Trace_ELBO(), after_each=theirs.step)
    assert_same(our_losses(program, ours, Trace_ELBO(), after_each=ours.step), expected)


# ---------------------------------------------------------------------------- programs apart


def values(svi: SVI) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in svi.parameters.values()]


def changed(before: list[Tensor], after: list[Tensor]) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


@programs
def test_two_programs_never_touch_each_other_and_both_train(build) -> None:
    alone = our_losses(build, adam, Trace_ELBO())
    pyro.clear_param_store()
    first, second = fresh(build), fresh(build)
    a = SVI(first.model, first.guide, adam, Trace_ELBO())
    b = SVI(second.model, second.guide, adam, Trace_ELBO())
    assert losses(a, first.args) == alone
    before = values(a)
    assert losses(b, second.args) == alone
    assert not any(changed(before, values(a)))
    assert not {id(p) for p in a.parameters.values()} & {id(p) for p in b.parameters.values()}
    at = values(b)
    b.step(*second.args)
    assert all(changed(at, values(b)))


def test_a_second_svi_goes_on_where_the_first_was() -> None:
    sgd = partial(torch.optim.SGD, lr=0.01)
    pair = functions_with_params()
    torch.manual_seed(11)
    expected = [SVI(pair.model, pair.guide, sgd, Trace_ELBO()).step(*pair.args) for _ in range(4)]
    pyro.clear_param_store()
    svi = SVI(pair.model, pair.guide, sgd, Trace_ELBO())
    assert losses(svi, pair.args, num_steps=4) == expected


def test_clearing_the_store_restarts() -> None:
    pair = functions_with_params()
    first = losses(SVI(pair.model, pair.guide, adam, Trace_ELBO()), pair.args)
    pyro.clear_param_store()
    assert losses(SVI(pair.model, pair.guide, adam, Trace_ELBO()), pair.args) == first


def test_parameters_are_read_from_the_store_after_training() -> None:
    pair = functions_with_params()
    svi = SVI(pair.model, pair.guide, adam, Trace_ELBO())
    losses(svi, pair.args)
    loc = pyro.param("loc")
    assert torch.equal(loc, svi.parameters["loc"])
    assert bool((loc != 0.1).any())
    torch.testing.assert_close(pyro.param("scale"), svi.parameters["scale"].exp())


def test_pyro_svi_trains_our_vae() -> None:
    pair = PROGRAMS["VAE, MLP"]()
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    before = [p.detach().clone() for p in pair.model.__self__.parameters()]
    found = losses(svi, pair.args, num_steps=60)
    after = list(pair.model.__self__.parameters())
    assert all(changed(before, after))
    assert sum(found[-10:]) < sum(found[:10])


def test_training_improves_the_bound() -> None:
    found = our_losses(PROGRAMS["two PyroModules"], adam, Trace_ELBO(), num_steps=150)
    assert sum(found[-20:]) < sum(found[:20]) - 1


# ---------------------------------------------------------------------------- single steps


@programs
def test_evaluate_loss_changes_nothing_and_agrees(build) -> None:
    pair = fresh(build)
    svi = SVI(pair.model, pair.guide, adam, Trace_ELBO())
    torch.manual_seed(2)
    expected = svi.loss_and_grads(*pair.args)
    svi.apply_gradients()
    before = values(svi)
    torch.manual_seed(2)
    later = svi.evaluate_loss(*pair.args)
    assert later != expected
    assert not any(changed(before, values(svi)))
    assert all(parameter.grad is None for parameter in svi.parameters.values())
    torch.manual_seed(2)
    assert svi.evaluate_loss(*pair.args) == later
    torch.manual_seed(2)
    assert svi.step(*pair.args) == pytest.approx(later, rel=1e-12)


def test_evaluate_loss_before_the_first_step() -> None:
    pair = functions_with_params()
    svi = SVI(pair.model, pair.guide, adam, Trace_ELBO())
    torch.manual_seed(11)
    assert svi.evaluate_loss(*pair.args) == our_losses(functions_with_params, adam, Trace_ELBO())[0]
    before = svi.evaluate_loss(*pair.args)
    for _ in range(50):
        svi.step(*pair.args)
    assert svi.evaluate_loss(*pair.args) < before


def small(latent) -> Pair:
    """A program whose posterior's location is ``latent()``."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))
            logits = z.sum(-1, keepdim=True).expand(-1, NUM_DIMS)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(latent(x), 1.0).to_event(1))

    return Pair(model, guide, (X(),))


@pytest.mark.parametrize("optim", [adam, pyro.optim.Adam({"lr": 0.01})])
def test_parameters_that_come_late_are_trained(optim) -> None:
    calls = []

    def latent(x):
        calls.append(1)
        loc = pyro.param("loc", torch.zeros(NUM_LATENTS).double())
        if len(calls) < 3:
            return loc
        return loc + pyro.param("late", torch.zeros(NUM_LATENTS).double())

    pair = small(latent)
    svi = SVI(pair.model, pair.guide, optim, Trace_ELBO())
    losses(svi, pair.args, num_steps=2)
    assert "late" not in svi.parameters
    losses(svi, pair.args, num_steps=2)
    assert bool((pyro.param("late") != 0).all())


class Frozen(PyroModule):
    """A guide of which one layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.frozen = nn.Linear(NUM_DIMS, 3), nn.Linear(3, NUM_LATENTS)
        self.frozen.requires_grad_(requires_grad=False)
        self.double()

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.frozen(self.free(x)), 1.0).to_event(1))


@pytest.mark.filterwarnings("ignore:.*requires_grad=False:UserWarning")
def test_frozen_parameters_stay() -> None:
    guide = Frozen()
    before = [p.clone() for p in guide.parameters()]
    svi = SVI(small(lambda x: x).model, guide, adam, Trace_ELBO())
    losses(svi, (X(),))
    assert changed(before, list(guide.parameters())) == [True, True, False, False]


def test_modules_that_were_not_registered_are_named() -> None:
    encoder = nn.Linear(NUM_DIMS, NUM_LATENTS).double()
    pair = small(lambda x: x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = encoder(x) + pyro.param("loc", torch.zeros(NUM_LATENTS).double())
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    svi = SVI(pair.model, guide, adam, Trace_ELBO())
    with pytest.warns(UserWarning, match="'Linear.weight' takes part.*pyro.module"):
        svi.step(*pair.args)
    svi.step(*pair.args)


def test_a_program_without_parameters_says_so() -> None:
    pair = small(lambda x: x[:, :NUM_LATENTS])
    with pytest.raises(ValueError, match="no parameters to train"):
        SVI(pair.model, pair.guide, adam, Trace_ELBO()).step(*pair.args)


def test_clip_norm_bounds_the_whole_gradient() -> None:
    pair = functions_with_params()
    sgd = partial(torch.optim.SGD, lr=1.0)
    svi = SVI(pair.model, pair.guide, sgd, Trace_ELBO(), clip_norm=0.25)
    svi.evaluate_loss(*pair.args)
    svi.loss_and_grads(*pair.args)
    before = values(svi)
    svi.apply_gradients()
    moved = [(a - b).square().sum() for a, b in zip(before, values(svi), strict=True)]
    assert sum(moved).sqrt().item() == pytest.approx(0.25, rel=1e-5)


def test_a_plain_function_as_loss() -> None:
    def loss(model, guide, *args):
        return Trace_ELBO().differentiable_loss(model, guide, *args)

    expected = our_losses(functions_with_params, adam, Trace_ELBO())
    pyro.clear_param_store()
    assert_same(our_losses(functions_with_params, adam, loss), expected)


def test_gradients_add_up_until_they_are_applied() -> None:
    pair = PROGRAMS["VAE, MLP"]()
    svi = SVI(pair.model, pair.guide, adam, Trace_ELBO())
    for times in (1, 2):
        torch.manual_seed(4)
        svi.loss_and_grads(*pair.args)
        found = [p.grad.clone() for p in svi.parameters.values()]
        if times == 1:
            once = found
    torch.testing.assert_close(found, [2 * grad for grad in once])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"optim": torch.optim.Adam([nn.Parameter(torch.zeros(1))])}, TypeError, "partial"),
        ({"optim": "Adam"}, TypeError, "optim='Adam'"),
        ({"loss": "ELBO"}, TypeError, "loss='ELBO'"),
        ({"loss": None}, TypeError, "loss=None"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm=0.0"),
        ({"clip_norm": float("nan")}, ValueError, "clip_norm=nan"),
        ({"model": 3}, TypeError, "model=3: expected a function"),
    ],
)
def test_bad_arguments_say_which(options, error, said: str) -> None:
    pair = functions_with_params()
    arguments = {"model": pair.model, "guide": pair.guide, "optim": adam, "loss": Trace_ELBO()}
    with pytest.raises(error, match=said):
        SVI(**{**arguments, **options})


def test_a_failing_step_leaves_the_settings_alone() -> None:
    def broken(x):
        raise RuntimeError(f"no guide for {len(x)}")

    pair = functions_with_params()
    with pytest.raises(ProgramError, match="RuntimeError: no guide"):
        SVI(pair.model, broken, adam, Trace_ELBO()).step(*pair.args)
    assert pyro.settings.get("module_local_params") is False
