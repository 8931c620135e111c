"""The convention is checked, the message names site and line, and the check leaves no trace."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import NUM_DIMS, NUM_LATENTS, NUM_ROWS, PROGRAMS, X, functions_with_params
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_vae.inference import Layout, Probe, Program, ProgramError
from pyro_vae.models import VAE

programs = pytest.mark.parametrize("build", PROGRAMS.values(), ids=PROGRAMS.keys())


@programs
def test_layout(build) -> None:
    pair = build()
    layout = Probe(Program(pair.model, pair.guide), *pair.args).layout
    assert layout == Layout(pair.latents, ("x",), pair.nesting, pair.vectorizes)


def snapshot(modules) -> dict:
    store = pyro.get_param_store()
    return {
        "rng": torch.get_rng_state(),
        "store": {name: value.detach().clone() for name, value in store.items()},
        "state": [copy.deepcopy(module.state_dict()) for module in modules],
        "modes": [m.training for module in modules for m in module.modules()],
        "grads": [p.grad for module in modules for p in module.parameters()],
    }


def assert_equal(before, after) -> None:
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@programs
def test_check_changes_nothing(build) -> None:
    pair = build()
    program = Program(pair.model, pair.guide)
    before = snapshot(program.modules)
    Probe(program, *pair.args)
    assert_equal(before, snapshot(program.modules))
    with program.running():
        program.traces(*pair.args)
    trained = snapshot(program.modules)
    Probe(program, *pair.args)
    assert_equal(trained, snapshot(program.modules))


class WithNorm(PyroModule):
    """Has buffers, a module in evaluation mode, and a parameter made at its first use."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(NUM_DIMS)
        self.frozen = nn.Dropout()
        self.frozen.eval()

    @PyroParam(constraint=dist.constraints.positive)
    def scale(self):
        return torch.rand(NUM_LATENTS) + 0.5

    def forward(self, x):
        with pyro.plate("data", len(x)):
            loc = self.frozen(self.norm(x))[:, :NUM_LATENTS]
            pyro.sample("z", dist.Normal(loc, self.scale).to_event(1))


def model_of_floats(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(NUM_LATENTS), 1.0).to_event(1))
        loc = z.sum(-1, keepdim=True).expand(*z.shape[:-1], NUM_DIMS)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def test_check_leaves_buffers_modes_and_lazy_parameters() -> None:
    guide = WithNorm()
    before = snapshot([guide])
    Probe(Program(model_of_floats, guide), X().float())
    after = snapshot([guide])
    assert_equal(before, after)
    assert not guide.frozen.training
    assert guide.norm.training


def test_evaluating_seeds_and_restores() -> None:
    pair = PROGRAMS["VAE, MLP"]()
    program = Program(pair.model, pair.guide)
    state = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with program.evaluating(seed=5):
            draws.append(torch.rand(3))
            assert not torch.is_grad_enabled()
            assert not program.modules[0].training
    assert torch.equal(*draws)
    assert torch.equal(state, torch.get_rng_state())
    assert program.modules[0].training
    with pytest.raises(KeyError), program.evaluating():
        raise KeyError
    assert program.modules[0].training


@programs
def test_parameters_are_named_once(build) -> None:
    pair = build()
    program = Program(pair.model, pair.guide)
    named = program.parameters()
    assert len({id(p) for p in named.values()}) == len(named)
    in_modules = {id(p) for module in program.modules for p in module.parameters()}
    assert {id(p) for p in named.values()} == in_modules


# ---------------------------------------------------------------------------- broken programs


def z_of(x, *, size=None, name="z"):
    with pyro.plate("data", len(x) if size is None else size):
        return pyro.sample(name, dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))


def model(x, *, plate="data", size=None, event=1, observe=True, width=NUM_DIMS, extra=False):
    with pyro.plate(plate, len(x) if size is None else size):
        z = pyro.sample("z", dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))
        if extra:
            pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
        logits = z.sum(-1, keepdim=True).expand(*z.shape[:-1], width)
        fn = dist.Bernoulli(logits=logits).to_event(event)
        pyro.sample("x", fn, obs=x if observe else None)


def model_without_plate(x):
    z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), NUM_LATENTS), 1.0).to_event(1))
    logits = z.sum(-1, keepdim=True).expand(-1, NUM_DIMS)
    pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def model_with_z_outside(x):
    z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), NUM_LATENTS), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        logits = z.sum(-1, keepdim=True).expand(*z.shape[:-1], NUM_DIMS)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide_without_plate(x):
    pyro.sample("z", dist.Normal(x.new_zeros(len(x), NUM_LATENTS), 1.0).to_event(1))


def guide_with_two(x):
    with pyro.plate("data", len(x)):
        fn = dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1)
        pyro.sample("z", fn)
        pyro.sample("w", fn)


def model_with_dim_of_its_own(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", NUM_DIMS, dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z), obs=x)


def wrong_scale(x):
    with pyro.validation_enabled(True):
        dist.Normal(z_of(x), torch.zeros(len(x), NUM_LATENTS))


class Misspelt(nn.Module):
    def model(self, x):
        return self.decoder(x)


def failing_decoder(x):
    z_of(x)
    nn.Linear(NUM_LATENTS + 1, NUM_DIMS)(x.new_zeros(len(x), NUM_LATENTS).float())


def model_with_a_mask_of_all_data(x):
    with poutine.mask(mask=torch.ones(300, dtype=torch.bool)):
        model(x)


BROKEN = {
    "a mask of all data": (
        model_with_a_mask_of_all_data,
        z_of,
        r"mask of site '\w' \(test_program.py:\d+\) has shape \(300,\).*\(3,\): give one value",
    ),
    "observes nothing": (
        partial(model, observe=False),
        z_of,
        r"observes nothing.*'x' \(test_program.py:\d+\).*obs=x",
    ),
    "guide missing a latent": (
        partial(model, extra=True),
        z_of,
        r"guide has no site 'u'.*\(test_program.py:\d+\).*add",
    ),
    "guide empty": (model, lambda x: None, r"no site 'z'.*\(test_program.py:\d+\).*add"),
    "guide with one too many": (
        model,
        guide_with_two,
        r"guide samples 'w' \(test_program.py:\d+\).*remove",
    ),
    "no plate in the model": (
        model_without_plate,
        z_of,
        r"site 'x' \(test_program.py:\d+\) is not in the plate \"data\"",
    ),
    "no plate around z": (
        model_with_z_outside,
        z_of,
        r"site 'z' \(test_program.py:\d+\) is not in the plate \"data\"",
    ),
    "no plate in the guide": (
        model,
        guide_without_plate,
        r"site 'z' \(test_program.py:\d+\) is not in the plate \"data\"",
    ),
    "another plate's name": (
        partial(model, plate="batch"),
        z_of,
        r"'x' \(test_program.py:\d+\).*its plates: 'batch'",
    ),
    "data at another dim": (
        model_with_dim_of_its_own,
        model_with_dim_of_its_own,
        r"'x' \(test_program.py:\d+\) is not in the plate \"data\" at dim -1",
    ),
    "no to_event": (
        partial(model, event=0),
        z_of,
        r"at site 'x' \(test_program.py:\d+\).*to_event",
    ),
    "plate of a fixed size, model": (
        partial(model, size=64),
        z_of,
        r"64 data at site 'z' \(test_program.py:\d+\).*3 at site 'z'|3 .* 64.*len\(x\)",
    ),
    "plate of a fixed size, both": (
        partial(model, size=64),
        partial(z_of, size=64),
        r"'z' \(test_program.py:\d+\) has size 64 for a batch of 3.*len\(x\)",
    ),
    "width": (partial(model, width=3), z_of, r"'x' \(test_program.py:\d+\).*(3, 4|size|shape)"),
    "decoder": (
        failing_decoder,
        z_of,
        r"\(test_program.py:\d+\).*Linear.*takes 3 numbers, not 2",
    ),
    "an attribute of its own": (
        Misspelt().model,
        z_of,
        r"\(test_program.py:\d+\).*check the spelling of 'decoder', or set it in __init__",
    ),
    "a scale of zero": (
        wrong_scale,
        z_of,
        r"\(test_program.py:\d+\).*the scale of a Normal to satisfy the constraint \S*; keep",
    ),
    "a site twice": (lambda x: (z_of(x), z_of(x, name="z")), z_of, "sites.* a name of its own"),
    "numbers that are no tensor": (
        lambda x: dist.Normal([0.0], 1.0),
        z_of,
        r"\(test_program.py:\d+\).*torch.as_tensor makes them",
    ),
    "attribute": (lambda x: x.nothing, z_of, r"\(test_program.py:\d+\).*'nothing'"),
    "too many arguments": (lambda x, y: None, z_of, r"'y'"),
    "no function": (3, z_of, "the model is 3"),
    "no guide": (model, None, "the guide is None"),
}


@pytest.mark.parametrize(("model", "guide", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_programs(model, guide, said: str) -> None:
    with pytest.raises(ProgramError, match=said) as caught:
        Probe(Program(model, guide), X())
    assert "\n" not in str(caught.value)


def test_the_line_is_the_sites_line() -> None:
    with pytest.raises(ProgramError) as caught:
        Probe(Program(model, guide_with_two), X())
    number = int(str(caught.value).split("test_program.py:")[1].split(")")[0])
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert 'pyro.sample("w", fn)' in lines[number - 1]


def test_missing_to_event_is_seen_whatever_the_width() -> None:
    for width in (1, 3, 5):

        def narrow(x, width=width):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))
                logits = z.sum(-1, keepdim=True).expand(*z.shape[:-1], width)
                pyro.sample("x", dist.Bernoulli(logits=logits), obs=x)

        with pytest.raises(ProgramError, match="to_event"):
            Probe(Program(narrow, z_of), torch.zeros(NUM_ROWS, width))


def test_auxiliary_sites_of_the_guide_are_allowed() -> None:
    def guide(x):
        with pyro.plate("data", len(x)):
            fn = dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1)
            a = pyro.sample("a", fn, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(a, event_dim=1))

    assert Probe(Program(model, guide), X()).layout.latents == ("a", "z")


def test_subsampled_plate_of_all_data_is_allowed() -> None:
    def wide(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))
            logits = z.sum(-1, keepdim=True).expand(*z.shape[:-1], NUM_DIMS)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))

    assert Probe(Program(wide, guide), X()).layout.vectorizes


# ---------------------------------------------------------------------------- names in the store


def params_of(pair) -> list[torch.Tensor]:
    program = Program(pair.model, pair.guide)
    with program.running(), pyro.poutine.trace(param_only=True) as capture:
        program.traces(*pair.args)
    values = [site["value"] for site in capture.trace.nodes.values()]
    return [value.unconstrained() if hasattr(value, "unconstrained") else value for value in values]


def test_programs_of_equal_names_share_nothing_and_keep_their_own() -> None:
    first, second = functions_with_params(), functions_with_params()
    a, b = params_of(first), params_of(second)
    assert not {id(p) for p in a} & {id(p) for p in b}
    assert [id(p) for p in params_of(first)] == [id(p) for p in a]
    assert [id(p) for p in params_of(second)] == [id(p) for p in b]


def test_names_are_free_again_after_the_store_is_cleared() -> None:
    first, second = functions_with_params(), functions_with_params()
    params_of(first)
    params_of(second)
    pyro.clear_param_store()
    b = params_of(second)
    a = params_of(first)
    assert not {id(p) for p in a} & {id(p) for p in b}


def test_one_model_under_two_guides_of_equal_names() -> None:
    first, second = functions_with_params(), functions_with_params()
    a = params_of(first)
    b = params_of(type(first)(first.model, second.guide, first.args))
    assert [id(p) for p in a[2:]] == [id(p) for p in b[2:]]  # the model's, which runs last
    assert not {id(p) for p in a[:2]} & {id(p) for p in b[:2]}


def test_a_module_is_never_exchanged_for_its_namesake() -> None:
    holder = {"decoder": nn.Linear(NUM_LATENTS, NUM_DIMS).double()}

    def with_module(x):
        decoder = holder["decoder"]
        pyro.module("decoder", decoder)
        z = z_of(x)
        with pyro.plate("more", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    pair = type(functions_with_params())(with_module, z_of, (X(),))
    assert params_of(pair)[0] is holder["decoder"].weight
    holder["decoder"] = nn.Linear(NUM_LATENTS, NUM_DIMS).double()
    assert params_of(pair)[0] is holder["decoder"].weight


def test_a_parameter_as_initial_value_is_made_once() -> None:
    def guide(x):
        loc = pyro.param("loc", nn.Parameter(torch.zeros(NUM_LATENTS)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    pair = type(functions_with_params())(model, guide, (X(),))
    assert params_of(pair)[0] is params_of(pair)[0]
    assert list(pyro.get_param_store().keys()) == ["loc"]


def test_a_vae_without_data_checks_too() -> None:
    vae = VAE.assemble((NUM_DIMS,), (NUM_LATENTS,))
    assert Probe(Program(vae.model, vae.guide), X().float()).layout.observed == ("x",)
