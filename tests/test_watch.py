"""A recording never says what the program no longer says."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import functions_with_params
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from recorded import DIMS, LATENTS, Run, Small, assert_same, run, small
from torch import Tensor, nn

from pyro_vae import VAE
from pyro_vae.components import MLP
from pyro_vae.engine.svi import SVI
from pyro_vae.recording import recorder
from pyro_vae.recording.watch import Watch

FACTOR = 1.0
SETTINGS = argparse.Namespace(factor=1.0)


def scaled(z: Tensor, by: float = 1.0, *, also: float = 1.0) -> Tensor:
    return z * by * also * FACTOR * SETTINGS.factor


def bent(z: Tensor) -> Tensor:
    return scaled(z) + 0.3


def closure() -> Any:
    factor = 1.0

    def apply(z: Tensor) -> Tensor:
        return z * factor

    def change(value: float) -> None:
        nonlocal factor
        factor = value

    apply.change = change
    return apply


class Config:
    """Settings as attributes of a class that is only referred to."""

    factor = 1.0


class Slots:
    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 1.0


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = 1.0
        self.linear = nn.Linear(DIMS, DIMS)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.linear(x)


class Changing(Small):
    """Every kind of thing that Python code may depend on."""

    tilt = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.beta, self.doubles, self._hidden = 1.0, False, 1.0
        self.nested = nn.Sequential(nn.Identity(), Inner())
        self.dropout = nn.Dropout(0.3)
        self.gains, self.table = [1.0, [1.0]], {"a": 1.0, "b": {"c": 1.0}}
        self.options = SimpleNamespace(beta=1.0, deep=SimpleNamespace(er=SimpleNamespace(beta=1.0)))
        self.slots, self.array = Slots(), np.ones(DIMS)
        self.plain, self.number = torch.ones(DIMS), torch.tensor(1.0)
        self.closure, self.partial = closure(), functools.partial(scaled, by=1.0)
        self.transform = scaled
        self.unit = dist.Normal(torch.zeros(LATENTS), 1.0)
        self.register_buffer("offset", torch.zeros(DIMS))
        self.late: nn.Parameter | None = None

    def prior(self, x: Tensor) -> Any:
        return self.unit.to_event(1)

    def posterior(self, x: Tensor) -> Any:
        return super().posterior(x * self.beta * self.options.beta)

    def numbers(self) -> float:
        of_containers = self.gains[0] * self.gains[1][0] * self.table["a"] * self.table["b"]["c"]
        of_objects = self.slots.factor * self.options.deep.er.beta * Config.factor
        return of_containers * of_objects * self.tilt * self._hidden * (1 + self.doubles)

    def logits(self, z: Tensor) -> Tensor:
        z = self.partial(self.closure(self.transform(self.dropout(z))))
        logits = self.decoder(z) * self.numbers() * self.plain * self.number + self.offset
        logits = logits * torch.as_tensor(self.array.tolist(), dtype=z.dtype)
        if self.late is not None:
            logits = logits + self.late
        return self.nested(logits)


def replaced(x: Tensor, value: float) -> nn.Parameter:
    return nn.Parameter(torch.full_like(x, value))


def set_class_method(p: Any) -> None:
    Changing.logits = lambda self, z: self.decoder(z)


def hook(module: Any, args: Any, output: Tensor) -> Tensor:
    return output * 0.5


# What is done between two steps; the step after it is eager, the next one is recorded anew.
STALE = {
    "float": lambda p: setattr(p, "beta", 0.5),
    "int for float": lambda p: setattr(p, "beta", 2),
    "private float": lambda p: setattr(p, "_hidden", 0.5),
    "flag": lambda p: setattr(p, "doubles", True),
    "nested submodule": lambda p: setattr(p.nested[1], "gain", 0.5),
    "element of a list": lambda p: p.gains.__setitem__(0, 0.5),
    "list in a list": lambda p: p.gains[1].__setitem__(0, 0.5),
    "element of a dict": lambda p: p.table.__setitem__("a", 0.5),
    "dict in a dict": lambda p: p.table["b"].__setitem__("c", 0.5),
    "closure": lambda p: p.closure.change(0.5),
    "global": lambda p: globals().__setitem__("FACTOR", 0.5),
    "attribute of a global": lambda p: setattr(SETTINGS, "factor", 0.5),
    "attribute of a class": lambda p: setattr(Config, "factor", 0.5),
    "default": lambda p: setattr(scaled, "__defaults__", (0.5,)),
    "keyword default": lambda p: setattr(scaled, "__kwdefaults__", {"also": 0.5}),
    "code": lambda p: setattr(scaled, "__code__", (lambda z, by=1.0, *, also=1.0: z * 3).__code__),
    "class attribute": lambda p: setattr(Changing, "tilt", 0.5),
    "shadowed class attribute": lambda p: setattr(p, "tilt", 0.5),
    "method": set_class_method,
    "function": lambda p: setattr(p, "transform", bent),
    "partial": lambda p: setattr(p, "partial", functools.partial(scaled, by=0.5)),
    "plain object": lambda p: setattr(p.options, "beta", 0.5),
    "plain object, deep": lambda p: setattr(p.options.deep.er, "beta", 0.5),
    "slot": lambda p: setattr(p.slots, "factor", 0.5),
    "array": lambda p: p.array.fill(0.5),
    "distribution": lambda p: setattr(p.unit, "loc", torch.ones(LATENTS)),
    "submodule": lambda p: p.nested.__setitem__(1, nn.ReLU()),
    "parameter": lambda p: setattr(p.decoder, "bias", replaced(p.decoder.bias, 0.5)),
    "frozen": lambda p: p.encoder.requires_grad_(requires_grad=False),
    "new parameter": lambda p: setattr(p, "late", nn.Parameter(torch.ones(DIMS))),
    "eval": lambda p: p.eval(),
    "one part in eval": lambda p: p.dropout.eval(),
    "forward hook": lambda p: p.nested[1].register_forward_hook(hook),
    "tensor": lambda p: setattr(p, "plain", torch.full((DIMS,), 0.5)),
    "equal number": lambda p: (setattr(p, "number", torch.tensor(1.0)), p.number.fill_(0.5)),
    "buffer": lambda p: setattr(p, "offset", torch.ones(DIMS)),
    "layout": lambda p: setattr(p.decoder.weight, "data", torch.ones(LATENTS, DIMS).T),
    "dtype of a buffer": lambda p: setattr(p.offset, "data", torch.ones(DIMS).bfloat16()),
}  # fmt: skip


def load(p: Any) -> None:
    p.load_state_dict({name: value * 0.5 for name, value in p.state_dict().items()})


# What a recording reads anew by itself.
FRESH = {
    "tensor in place": lambda p: p.plain.mul_(0.5),
    "number in place": lambda p: p.number.fill_(0.5),
    "buffer in place": lambda p: p.offset.fill_(0.5),
    "load_state_dict": load,
    "param.data": lambda p: setattr(p.decoder.bias, "data", torch.ones(DIMS)),
    "value of a distribution": lambda p: p.unit.loc.fill_(0.5),
    "equal float": lambda p: setattr(p, "beta", float("1.0")),
    "evaluated in between": lambda p: p.eval() and p.train(),
}
SAYS_THE_SAME = ("equal float", "evaluated in between")


@contextmanager
def as_it_was() -> Iterator[None]:
    """Put back what the table changes outside of the program."""
    before = (Changing.logits, scaled.__code__)
    try:
        yield
    finally:
        Changing.logits, scaled.__code__ = before
        Changing.tilt = Config.factor = SETTINGS.factor = 1.0
        globals()["FACTOR"] = 1.0
        scaled.__defaults__, scaled.__kwdefaults__ = (1.0,), {"also": 1.0}


def changing(engine: str, change: Any, *, leaf: Any = Changing) -> Run:
    """Take four steps, with a change before the third."""

    def between(step: int, svi: SVI) -> None:
        if step == 2:
            change(svi.program.modules[0])

    with as_it_was():
        return run(lambda: small(leaf), Trace_ELBO(), engine, sizes=[6] * 4, between=between)


def twins(change: Any, *, leaf: Any = Changing) -> Run:
    found = changing("recorded", change, leaf=leaf)
    assert_same(found, changing("eager", change, leaf=leaf))
    return found


@pytest.fixture(scope="module")
def without_change() -> list[float]:
    return changing("eager", lambda p: None).losses


# A member of each kind of thing; that the watch sees all of them is cheaper to ask of it alone.
IN_A_STEP = ("closure", "parameter", "tensor")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in IN_A_STEP else pytest.mark.slow) for n in STALE]
)
def test_a_change_is_seen_at_once(name: str, without_change: list[float]) -> None:
    found = twins(STALE[name])
    assert found.replayed == [False, True, False, True]
    assert found.losses[:2] == without_change[:2]
    assert found.losses[2:] != without_change[2:]


def test_values_in_tensors_are_read_anew() -> None:
    """All of them in one run, a change before each step from the third on."""
    changes = list(FRESH.values())

    def steps(engine: str, skipped: int | None = None) -> Run:
        def between(step: int, svi: SVI) -> None:
            if step >= 2 and step - 2 != skipped:
                changes[step - 2](svi.program.modules[0])

        sizes = [6] * (2 + len(changes))
        return run(lambda: small(Changing), Trace_ELBO(), engine, sizes=sizes, between=between)

    found, expected = steps("recorded"), steps("eager")
    assert_same(found, expected)
    assert found.replayed == [False] + [True] * (1 + len(changes))
    for place, name in enumerate(FRESH):
        same = steps("eager", skipped=place).losses[place + 2] == expected.losses[place + 2]
        assert same is (name in SAYS_THE_SAME), name


@pytest.mark.parametrize("name", STALE)
def test_a_change_is_named_and_undone(name: str) -> None:
    program = Changing()
    program.model(torch.ones(3, DIMS))
    watch = Watch([("p", program), ("model", program.model)])
    with as_it_was():
        assert watch.changed() is None
        with watch.undoing() as changed:
            STALE[name](program)
            assert watch.changed() is not None
            assert changed().startswith("a run of the program changes ")
        assert watch.changed() is None
        assert watch.changed() is None


def test_a_new_parameter_and_an_unfrozen_one_are_trained() -> None:
    class Frozen(Changing):
        def __init__(self) -> None:
            super().__init__()
            self.encoder.requires_grad_(requires_grad=False)

    def change(program: Any) -> None:
        program.late = nn.Parameter(torch.ones(DIMS))
        program.encoder.requires_grad_(requires_grad=True)
        program.before = program.encoder.weight.clone()

    found = twins(change, leaf=Frozen)
    (program,) = found.svi.program.modules
    assert bool((program.late != 1).any())
    assert bool((program.encoder.weight != program.before).any())
    assert found.replayed[-1]


def test_another_dtype() -> None:
    def steps(engine: str) -> list[float]:
        sgd = functools.partial(torch.optim.SGD, lr=0.05)
        svi = run(lambda: small(Small), Trace_ELBO(), engine, sizes=[6] * 3, optim=sgd).svi
        svi.program.modules[0].double()
        found = [svi.step(torch.ones(6, DIMS).double()) for _ in range(3)]
        assert svi.recorded is (engine == "recorded")
        return found

    assert steps("recorded") == steps("eager")


STORE = {
    "cleared": pyro.clear_param_store,
    "deleted": lambda: pyro.get_param_store().__delitem__("loc"),
    "set": lambda: pyro.get_param_store().__setitem__("scale", 0.5 * torch.ones(LATENTS).double()),
}  # fmt: skip


@pytest.mark.parametrize("name", STORE)
def test_pyros_store_is_watched(name: str) -> None:
    def between(step: int, svi: SVI) -> None:
        if step == 2:
            STORE[name]()

    build, sizes = functions_with_params, [6] * 4
    found, expected = (
        run(build, Trace_ELBO(), engine, sizes=sizes, between=between)
        for engine in ("recorded", "eager")
    )
    assert_same(found, expected)
    assert found.replayed == [False, True, False, True]
    with torch.no_grad():
        assert torch.equal(pyro.param("loc"), found.svi.parameters["loc"])


def test_the_objective_is_watched() -> None:
    def steps(engine: str) -> Run:
        def between(step: int, svi: SVI) -> None:
            if step == 2:
                svi.loss.num_particles = 2
            if step == 4:
                svi.loss = TraceMeanField_ELBO(max_plate_nesting=1)

        return run(lambda: small(Small), Trace_ELBO(), engine, sizes=[6] * 6, between=between)

    found = steps("recorded")
    assert_same(found, steps("eager"))
    assert found.replayed == [False, True, False, True, True, True]


def every(steps: int) -> Any:
    def between(step: int, svi: SVI) -> None:
        if step % steps == 0:
            svi.program.modules[0].beta = 0.5 + 0.01 * step

    return between


def test_what_changes_at_every_step_runs_eagerly() -> None:
    def steps(engine: str) -> Run:
        return run(lambda: small(Changing), Trace_ELBO(), engine, sizes=[6] * 12, between=every(1))

    with pytest.warns(UserWarning, match=r"Changing\.beta changes again and again.*tensor"):
        found = steps("recorded")
    assert sum(found.replayed) == 4
    assert not any(found.replayed[8:])
    assert_same(found, steps("eager"))


def test_what_changes_seldom_is_recorded_each_time(monkeypatch) -> None:
    monkeypatch.setattr(recorder, "_WORTHWHILE", 3)
    monkeypatch.setattr(recorder, "_MAX_CHANGES", 1)
    sizes = [6] * 12  # two changes, which is more than are put up with otherwise
    found, expected = (
        run(lambda: small(Changing), Trace_ELBO(), engine, sizes=sizes, between=every(4))
        for engine in ("recorded", "eager")
    )
    assert found.replayed == [False, True, True, True] * 3
    assert_same(found, expected)


UNWATCHABLE = {
    "iterator": (lambda p: setattr(p, "it", iter([1])), "p.it is an iterator"),
    "large array": (lambda p: setattr(p, "array", np.ones(5000)), "p.array is a large numpy array"),
    "many objects": (lambda p: setattr(p, "names", [[] for _ in range(60_000)]), "more than 50000"),
}


@pytest.mark.parametrize("name", UNWATCHABLE)
def test_what_cannot_be_watched_is_named(name: str) -> None:
    program = Small()
    assert Watch([("p", program)]).unwatchable is None
    change, said = UNWATCHABLE[name]
    change(program)
    assert said in str(Watch([("p", program)]).unwatchable)


def test_hooks_on_tensors_run_eagerly() -> None:
    def change(program: Any) -> None:
        program.decoder.weight.register_hook(lambda gradient: gradient * 0.5)

    with pytest.warns(UserWarning, match="decoder.weight has a hook"):
        found = changing("recorded", change, leaf=Small)
    assert_same(found, changing("eager", change, leaf=Small))


def test_a_tensor_trained_elsewhere_gets_its_gradient() -> None:
    def steps(engine: str) -> Tensor:
        def change(program: Any) -> None:
            program.plain = temperature

        temperature = torch.ones(DIMS, requires_grad=True)
        changing(engine, change)
        return temperature.grad

    with pytest.warns(UserWarning, match="plain takes part in the loss, but is not trained here"):
        found = steps("recorded")
    assert torch.equal(found, steps("eager"))


def test_a_look_is_cheap() -> None:
    vae = VAE.assemble((8,), (2,), network=functools.partial(MLP, hidden=(5,)))
    watch = Watch([("VAE", vae), ("model", vae.model), ("guide", vae.guide)])
    seconds = []
    for _ in range(50):
        start = time.process_time()
        assert watch.changed() is None
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2e-4  # a small step takes 3e-4, and machines are shared
