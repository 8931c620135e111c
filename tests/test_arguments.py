"""A wrong argument is told at the door: what was given, what is expected, the cure."""

from __future__ import annotations

import inspect
import itertools
import random
import traceback
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_vae import SVI, VAE, components, evaluation, fit, inference
from pyro_vae.arguments import at_the_door
from pyro_vae.components import (
    MLP,
    CategoricalSequence,
    Columns,
    Conditional,
    DiagonalNormal,
    GatedMLP,
    Incomplete,
    Normal,
    Recurrent,
    RecurrentDecoder,
    StandardNormal,
)
from pyro_vae.inference import ELBO, IWAE, ProgramError
from pyro_vae.models import ConditionalVAE, HierarchicalVAE, UnamortizedVAE

NETWORK = partial(MLP, hidden=(4,))
X = torch.linspace(-1, 1, 80).view(20, 4)


def vae(**parts):
    torch.manual_seed(0)
    given = {
        "prior": StandardNormal((2,)),
        "likelihood": Conditional(Normal((4,)), context_shape=(2,), network=NETWORK),
        "posterior": Conditional(DiagonalNormal((2,)), context_shape=(4,), network=NETWORK),
    }
    return VAE(**{**given, **parts})


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.a(x), self.b(x)


class Narrow(PyroModule):
    """A program of the user's with a layer that does not fit."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x[:, :1])

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.layer(x), 1.0).to_event(1))


class Given(Narrow):
    """A program whose guide hands ``layer`` itself to the statement."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.layer(x))


class Symbols(Narrow):
    """A program whose data are whole numbers."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.layer(x[:, 0]), 1.0).to_event(1))


def train(program=None, data=X, **options):
    return fit(program or vae(), data, **{"epochs": 1, "batch_size": 8, **options})


def encoder(network):
    return Conditional(DiagonalNormal((2,)), context_shape=(4,), network=network)


def labelled():
    program = ConditionalVAE.assemble((4,), (2,), num_classes=3, likelihood=Normal, network=NETWORK)
    return train(program, (X, torch.arange(20) % 5))


def sequences():
    symbols = torch.randint(1, 5, (20, 6))
    symbols[:, 4:] = -1
    program = VAE.assemble(
        (6,), (2,), likelihood=partial(CategoricalSequence, num_categories=5),
        encoder=partial(Recurrent, num_symbols=5), decoder=RecurrentDecoder,
    )  # fmt: skip
    return train(program, symbols)


SAID = {
    "a pair as posterior": (
        lambda: train(vae(posterior=Pair())),
        r"site 'z'.* is given a tuple of 2 for its distribution: return dist.Normal\(loc, scale\)",
    ),
    "a pair as network": (
        lambda: train(vae(posterior=encoder(lambda *_: Pair()))),
        r"network Pair returns a tuple of 2: .*shape \(2, 2\).* takes one tensor of shape \(",
    ),
    "another shape": (
        lambda: train(vae(posterior=encoder(lambda *_: nn.Linear(4, 1)))),
        r"network Linear returns a tensor of shape \(2, 1\) where DiagonalNormal takes one ten",
    ),
    "a module as network": (
        lambda: encoder(nn.Linear(4, 4)),
        r"network=a Linear is built already: expected what builds a network",
    ),
    "a layer's class as network": (lambda: encoder(nn.Linear), "network=the class Linear cannot b"),
    "no family": (lambda: Conditional(Normal), "family=the class Normal: expected a Family"),
    "the class of an objective": (lambda: train(objective=ELBO), r"objective=.*write ELBO\(\)"),
    "its name": (lambda: train(objective="IWAE"), r"objective='IWAE': .* such as IWAE\(\), not"),
    "a number": (lambda: train(objective=3), "fit: objective=3: expected a pyro.*ELBO or None"),
    "a class for SVI": (lambda: SVI(print, print, NETWORK, Trace_ELBO), r"write Trace_ELBO\(\)"),
    "LBFGS": (lambda: train(optim=partial(torch.optim.LBFGS, lr=0.1)), "LBFGS evaluates .*Adam"),
    "no optimiser": (lambda: train(optim=lambda _: 3), "cannot build an optimiser of"),
    "differentiable": (
        lambda: train(optim=partial(torch.optim.Adam, differentiable=True)),
        "differentiable=True is for gradients through a step",
    ),
    "no learning rate": (
        lambda: train(optim=pyro.optim.AdagradRMSProp({"eta": 0.1})),
        "AdagradRMSProp has no learning rate lr",
    ),
    "capturable": (
        lambda: train(optim=partial(torch.optim.Adam, capturable=True), device="cpu"),
        "capturable=True is for steps that CUDA captures",
    ),
    "sparse": (lambda: train(optim=torch.optim.SparseAdam), "SparseAdam takes sparse gradients"),
    "Muon": (lambda: train(optim=torch.optim.Muon), "cannot build an optimiser of the program's"),
    "a scheduler of Pyro's": (
        lambda: train(optim=pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
        )),
        r"a pyro.optim scheduler \(ExponentialLR\) moves the learning rate.* schedule=",
    ),
    "a decay of Pyro's": (
        lambda: train(optim=pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.99})),
        r"ClippedAdam\(lrd=0.99\) moves the learning rate.* schedule=",
    ),
    "a label too many": (labelled, "labels go up to 4.* has num_classes=3: give it 5 classes or"),
    "padding of -1": (
        sequences,
        r"network.symbols.embedding', Embedding\(5, 64\) is given .* from -1 to 4: .*pad with 0",
    ),
    "a layer too narrow": (
        lambda: train(Narrow(nn.Linear(3, 2))),
        r"\(test_arguments.py:\d+\) the layer 'layer', Linear\(in_features=3.* 3 numbers, not 4",
    ),
    "doubles": (lambda: train(vae().double(), X.double()), r"float32: data and weights differ"),
    "a distribution of torch": (
        lambda: train(Given(lambda x: torch.distributions.Normal(x[:, :2], 1.0))),
        r"site 'z' \(test_arguments.py:\d+\) .*take that of pyro.distributions, dist.Normal",
    ),
    "a tensor for a distribution": (
        lambda: train(Given(nn.Linear(4, 2))),
        r"site 'z' \(test_arguments.py:\d+\) is given a tensor of shape \(2, 2\) for its distr",
    ),
    "a class for a program": (lambda: fit(VAE, X), r"the class VAE is no program yet: build one"),
    "no program": (lambda: fit(3, X), "3 is no program: expected an object with methods model and"),
    "no guide": (lambda: fit(vae().model, X), "the function model is no program: .* fit.vae, data"),
    "no data": (lambda: fit(vae(), None), "there are no data: fit.vae, data."),
    "epochs=nan": (lambda: train(epochs=float("nan")), "epochs=nan: expected a whole number"),
    "epochs=2.0": (lambda: train(epochs=2.0), r"epochs=2.0: expected a whole number; write 2"),
    "patience=nan": (lambda: train(patience=float("nan")), "patience=nan: expected a whole number"),
    "clip_norm=nan": (lambda: train(clip_norm=float("nan")), "clip_norm=nan: give a number"),
    "progress=3": (lambda: train(progress=3), "progress=3: expected True or False"),
    "a word too many": (lambda: train(batchsize=3), "keyword argument 'batchsize'; it takes mod"),
    "tensorboard nowhere": (lambda: train(log_tensorboard=True), "log_tensorboard=True needs out="),
    "too many samples": (
        lambda: evaluation.log_likelihood(vae().model, vae().guide, X, num_samples=10**12),
        "num_samples=1000000000000: more than 100,000,000 would never end",
    ),
    "samples as a float": (
        lambda: evaluation.log_likelihood(vae().model, vae().guide, X, num_samples=1e12),
        "num_samples=1000000000000.0: expected a whole number",
    ),
    "a string of data": (
        lambda: evaluation.elbo(vae().model, vae().guide, "x"),
        "elbo: x='x': expected a tensor or an array of numbers",
    ),
    "encoder=0": (lambda: VAE.assemble((4,), (2,), encoder=0), "encoder=0: expected what builds a"),
    "an unknown part": (lambda: VAE.assemble((4,), (2,), enc=MLP), "'enc'; it takes event_shape,"),
    "no data at all": (
        lambda: VAE.assemble((4,), (2,), data=torch.empty(0)),
        r"data has shape \(0,\), expected \(N, 4\)",
    ),
    "a builder of no family": (
        lambda: VAE.assemble((4,), (2,), likelihood=lambda shape: 3),
        "likelihood=.* returns 3 for .4,.: expected what builds a Family from a shape",
    ),
    "a family, not its builder": (
        lambda: VAE.assemble((4,), (2,), prior=StandardNormal((2,))),
        "prior=a StandardNormal.*: expected what builds a Family .* is built already",
    ),
    "a tensor where a builder is due": (
        lambda: VAE.assemble((4,), (2,), network=X), r"network=a tensor of shape \(20, 4\): exp"
    ),
    "a number for a shape": (lambda: VAE.assemble(4, (2,)), r"event_shape=4: .*; write \(4,\)"),
    "one size of layers": (
        lambda: HierarchicalVAE.assemble((4,), (2,)), "latent_shapes=.2,.*expected a tuple"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("run", "said"), SAID.values(), ids=SAID)
def test_mistakes_are_told_in_words_of_ours(run, said):
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        run()
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 500
    assert _is_ours(caught.value)


# A name in the place of a part, in every role: what is expected, and what to give.
NAMES = {
    "prior": lambda name: VAE.assemble((4,), (2,), prior=name),
    "likelihood": lambda name: VAE.assemble((4,), (2,), likelihood=name),
    "posterior": lambda name: VAE.assemble((4,), (2,), posterior=name),
    "network": lambda name: VAE.assemble((4,), (2,), network=name),
    "part of a VAE": lambda name: vae(prior=name),
    "part of a hierarchy": lambda name: HierarchicalVAE(
        priors=[name], likelihood=vae().likelihood, posteriors=[name]
    ),
    "family": lambda name: Conditional(name),
    "columns": lambda name: Columns((2,), columns=[name, Normal]),
    "inner family": lambda name: Incomplete((2,), family=name),
    "activation": lambda name: MLP((2,), (2,), activation=name),
    "normalise": lambda name: MLP((2,), (2,), normalise=name),
    "initialise": lambda name: GatedMLP((2,), (2,), initialise=name),
    "widths": lambda name: MLP((2,), (2,), hidden=name),
    "objective": lambda name: train(objective=name),
    "optimiser": lambda name: train(optim=name),
    "schedule": lambda name: train(schedule=name),
    "observation": lambda name: train(observation=name),
    "turns": lambda name: train(turns=name),
}


@pytest.mark.parametrize("role", NAMES)
def test_a_name_where_a_part_is_due_is_told_at_the_door(role):
    with pytest.raises((TypeError, ValueError), match="expected") as caught:
        NAMES[role]("part")
    told = str(caught.value)
    assert "part" in told
    assert "\n" not in told
    assert "not its name" in told or role in ("family", "widths")
    assert _is_ours(caught.value)


DATA = {
    "doubles": X.double(),
    "numpy": X.numpy(),
    "doubles of numpy": X.double().numpy(),
    "lists": X.tolist(),
    "half": X.half().float().half(),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_rows_of_any_kind_are_judged_as_the_program_takes_them(data):
    program = vae()
    judged = partial(evaluation.posterior_means, program.model, program.guide)
    expected = judged(torch.as_tensor(data).float())["z"]
    assert torch.equal(judged(data)["z"], expected)
    doubled = program.double()
    found = evaluation.posterior_means(doubled.model, doubled.guide, data)["z"]
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), expected, atol=1e-5)


def test_symbols_stay_whole_numbers_where_a_program_wants_them():
    program = Symbols(nn.Embedding(5, 2))
    symbols = torch.arange(12).view(12, 1) % 5
    means = evaluation.posterior_means(program.model, program.guide, symbols.numpy())["z"]
    assert torch.equal(means, program.layer(symbols[:, 0]).detach())


def test_annotations_say_what_is_taken():
    @at_the_door
    def function(
        count: int,
        rate: float,
        x: torch.Tensor,
        name: str | None = None,
        *,
        sizes: Sequence[int] = (),
    ) -> tuple[object, ...]:
        return count, rate, x, name, sizes

    taken = function(np.int64(3), np.float32(0.5), [[1, 2]], sizes=[1])
    assert taken[:2] == (3, 0.5)
    assert type(taken[0]) is int
    assert torch.equal(taken[2], torch.tensor([[1, 2]]))
    for bad in ({"count": True}, {"rate": "a"}, {"x": "a"}, {"name": 3}, {"sizes": "12"}):
        given = {"count": 1, "rate": 1.0, "x": X, **bad}
        with pytest.raises(TypeError, match=f"function: {next(iter(bad))}=.*: expected"):
            function(**given)


# ------------------------------------------------------------------- any argument, anything at all


def _is_ours(error: BaseException) -> bool:
    last = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return last.f_globals["__name__"].startswith("pyro_vae.")


ANYTHING = [
    None, 0, -1, 1.5, float("nan"), float("inf"), 10**12, True, "abc", [], [1, 2], (), {}, 1j,
    torch.zeros(()), torch.empty(0), X[:, :2], X.long(), np.array(["a"]), nn.Linear(4, 2),
    nn.Linear, ELBO, IWAE(2), object(), lambda *_: 3, lambda *_: torch.zeros(2), print,
    torch.optim.Adam,
    Normal((4,)), MLP, X[0], iter([1]), partial(MLP, hidden=(0,)), (X, X),
]  # fmt: skip
SMALL = {
    "batch_size": 10, "engine": "eager", "num_samples": 2, "num_temperatures": 2, "num_chains": 1,
    "num_steps": 2, "num_data": 2, "num_updates": 1, "num_particles": 2, "num_transitions": 1,
    "num_repeats": 30, "num_groups": 10, "x_start": X[:1], "x_end": X[1:2], "x": X, "x_like": X,
    "values": {"z": torch.zeros(20, 2)}, "objective": ELBO(), "num_units": 1, "log_p": None,
}  # fmt: skip
JUDGES = [
    function
    for name in evaluation.__all__
    if inspect.isfunction(function := getattr(evaluation, name))
    and name not in ("compare", "embed", "linear_probe", "verdict")
]


def _calls(program):
    for function in JUDGES:
        named = inspect.signature(function).parameters
        small = {name: value for name, value in SMALL.items() if name in named}
        if "guide" in named:
            small["guide"] = program.guide
        yield function, {"model": program.model, **small}
    parts = {"prior": StandardNormal, "likelihood": Normal, "posterior": DiagonalNormal}
    shapes = {"event_shape": (4,), "latent_shape": (2,), "network": NETWORK, "data": None}
    yield VAE.assemble, {**parts, **shapes, "encoder": None, "decoder": None}
    one = {"model": program, "guide": X, "epochs": 1, "batch_size": 10, "engine": "eager"}
    rest = dict.fromkeys(("objective", "observation", "schedule", "turns", "clip_norm", "patience"))
    yield fit, {**one, **rest, "optim": torch.optim.SGD, "device": "cpu", "seed": 0}
    svi = {"model": program.model, "guide": program.guide, "optim": torch.optim.SGD}
    yield SVI, {**svi, "loss": ELBO(), "clip_norm": None, "engine": "eager"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3))])
def test_whatever_an_argument_is_the_call_works_or_says_so(seed):
    generator = random.Random(seed)
    program = vae()
    for function, good in _calls(program):
        for _ in range(5):
            name = generator.choice(list(good))
            bad = generator.choice(ANYTHING)
            told = None
            try:
                function(**{**good, name: bad})
            except (TypeError, ValueError) as error:
                told = error
            assert told is None or _is_ours(told), (function.__name__, name, bad, str(told))


NEEDED = {
    "event_shape": (4,), "in_shape": (4,), "out_shape": (2,), "latent_shape": (2,), "weight": 1.0,
    "num_categories": 3, "total_count": 3, "temperature": 0.5, "network": MLP, "objective": ELBO(),
    "columns": (Normal, Normal, Normal, Normal), "name": "Laplace", "levels": 3,
}  # fmt: skip


def _constructors():
    for name in (*inference.__all__, *components.__all__):
        made = getattr(inference, name, None) or getattr(components, name, None)
        if not inspect.isclass(made) or issubclass(made, (tuple, Exception)):
            continue
        named = inspect.signature(made).parameters.values()
        needed = [each.name for each in named if each.default is each.empty]
        if all(name in NEEDED for name in needed):
            yield pytest.param(made, {name: NEEDED[name] for name in needed}, id=made.__name__)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("made", "needed"), list(_constructors()))
def test_whatever_a_part_is_given_it_is_built_or_says_so(made, needed):
    generator = random.Random(0)
    names = list(inspect.signature(made).parameters)
    for name, bad in itertools.product(names, generator.sample(ANYTHING, 12)):
        told = None
        try:
            made(**{**needed, name: bad})
        except (TypeError, ValueError) as error:
            told = error
        assert told is None or _is_ours(told), (name, bad, str(told))


def test_a_program_of_the_users_own_is_told_its_own_line():
    def encode(x):
        return x @ torch.ones(3, 2)

    with pytest.raises(ProgramError, match=r"\(test_arguments.py:\d+\) the product there .* not 4"):
        train(Narrow(encode))


class Late(Narrow):
    """A program that fails from a run of its model on."""

    def __init__(self, fails_at):
        super().__init__(nn.Linear(4, 2))
        self.fails_at, self.num_runs = fails_at, 0

    def model(self, x):
        self.num_runs += 1
        if self.num_runs >= self.fails_at:
            torch.zeros(2) @ torch.zeros(3)
        super().model(x)


@pytest.mark.parametrize("fails_at", [1, 3, 5, 7, 9, 11, 14])
def test_whenever_a_program_fails_its_line_is_told(fails_at):
    program = Late(fails_at)
    with pytest.raises(ProgramError, match=r"\(test_arguments.py:\d+\) .* number of elements"):
        train(program, epochs=2, engine="eager")
    assert program.num_runs >= fails_at


def test_a_field_that_is_not_handed_over_is_asked_for():
    program = UnamortizedVAE.assemble((4,), (2,), num_data=20, likelihood=Normal, network=NETWORK)
    with pytest.raises(ProgramError, match=r"it takes row beside x: .* elbo\(program, x, row\)"):
        evaluation.elbo(program, X)


def test_whenever_a_step_fails_its_line_is_told():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            loc = z + (0.0 if len(x) > 2 else torch.zeros(3))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    svi = SVI(model, guide, partial(torch.optim.SGD, lr=0.1), ELBO())
    svi.step(X[:5])
    with pytest.raises(ProgramError, match=r"a step cannot be taken: \(test_arguments.py:\d+\)"):
        svi.step(X[:2])
