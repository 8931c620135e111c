"""A recorded step gives the eager step's bits, leaves no trace, and refuses what it cannot say."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import random
import resource
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from bits import same
from laws import PROGRAMS, functions_with_params
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer import trace_elbo as trace_elbo_module
from quick import some
from recorded import (
    DIMS,
    RECORDED,
    SIZES,
    Appends,
    Branches,
    Constrained,
    Counts,
    CumulativeNorm,
    Flag,
    Items,
    Iterates,
    Late,
    Lists,
    LongShortTerm,
    MixturePrior,
    OfNumpy,
    OfPython,
    OwnGenerator,
    Raises,
    Seeds,
    Small,
    adam,
    assert_same,
    both,
    copies,
    injected,
    late_function,
    of_optimizer,
    run,
    small,
)  # fmt: skip
from runs import child, final
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae import VAE, fit
from pyro_vae.components import MLP, DiagonalNormal, Normal
from pyro_vae.engine import checkpoint
from pyro_vae.engine.observations import Binarize
from pyro_vae.engine.step import Step
from pyro_vae.engine.svi import SVI
from pyro_vae.engine.updates import Updates
from pyro_vae.inference import (
    ELBO,
    IWAE,
    PIWAE,
    AnalyticELBO,
    BetaTCVAE,
    DReG,
    FreeBits,
    Renyi,
)
from pyro_vae.inference.program import Program
from pyro_vae.recording import replaying
from pyro_vae.recording.ahead import CACHE_VARIABLE
from pyro_vae.recording.recorder import NotRecordable

OBJECTIVES = {
    "one": partial(Trace_ELBO, max_plate_nesting=2),
    "looped": partial(Trace_ELBO, num_particles=2, max_plate_nesting=2),
    "vectorized": partial(
        Trace_ELBO, num_particles=3, vectorize_particles=True, max_plate_nesting=3
    ),
    "mean field": partial(TraceMeanField_ELBO, max_plate_nesting=2),
}
UNTRAINABLE = {
    ("discrete, score function", "mean field"),
    ("two latents", "mean field"),
    ("no particles", "vectorized"),
}


# ---------------------------------------------------------------------------- the same bits

EVERY = [*PROGRAMS, *RECORDED]
# Of these the others have all that a recording meets, in fewer operations.
WHEN_SLOW = {
    "VAE, convolutional",
    "functions, pyro.module",
    "two PyroModules",
    "no particles",
    "spline prior",
    "mixture prior",
    "functions, pyro.param",
}


def covering() -> list[Any]:
    """Cross programs, objectives, and whole steps or gradients alone, all of it only when slow.

    Else most programs are tried under one objective: two of three take whole steps, the third
    gradients alone, with a smaller batch on the way, which is a recording more.
    """
    objectives, cases = list(OBJECTIVES), []
    for place, name in enumerate(EVERY):
        trainable = [o for o in objectives if (name, o) not in UNTRAINABLE]
        for whole in (True, False):
            chosen = trainable[(place + whole) % len(trainable)]
            for objective in trainable:
                quick = objective == chosen and whole == (place % 3 > 0) and name not in WHEN_SLOW
                marks = () if quick else pytest.mark.slow
                cases.append(pytest.param(name, objective, whole, marks=marks))
    return cases


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning")
@pytest.mark.parametrize(("name", "objective", "whole"), covering())
def test_bits_are_those_of_the_eager_step(name: str, objective: str, whole: bool) -> None:
    """Gradients alone are taken in float64, in which some of the programs always are."""
    dtype = torch.float32 if whole else torch.float64
    build = PROGRAMS.get(name) or partial(small, RECORDED[name], dtype)
    sizes = (6, 6, 6) if whole else SIZES
    found = both(build, OBJECTIVES[objective], sizes=sizes, whole=whole)
    assert found.replayed == [False] + [True] * (len(sizes) - 1)
    assert len(set(found.losses)) == len(found.losses)
    steps = found.svi
    recorder = (steps._whole if whole else steps._gradients)._recorder
    assert len(recorder._recordings) == len(set(sizes))
    assert not steps._whole.gave_up


@pytest.mark.parametrize(
    "objective", [pytest.param(partial(ELBO, 3), marks=pytest.mark.slow), partial(IWAE, 3)]
)
def test_bits_of_our_objectives(objective) -> None:
    assert all(both(partial(small, MixturePrior), objective).replayed[1:])


OPTIMISERS = {
    "clip_norm": {"clip_norm": 0.01},
    "sgd with momentum": {"optim": partial(torch.optim.SGD, lr=0.05, momentum=0.9)},
    "fused": {"optim": partial(torch.optim.Adam, lr=0.05, fused=True)},
    "Pyro's ClippedAdam": {"optim": pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 0.1})},
    "Pyro's clip_norm": {"optim": pyro.optim.SGD({"lr": 0.05}, {"clip_norm": 0.01})},
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_bits_under_every_optimiser(name: str) -> None:
    """Clipping in place would show gradients that share memory, as those of a sum do."""
    found = both(partial(small, Constrained), Trace_ELBO, sizes=[6] * 3, **OPTIMISERS[name])
    assert all(found.replayed[1:])
    assert all(gradients["unused"] is None for gradients in found.gradients)
    addresses = [p.data_ptr() for p in found.svi.parameters.values()]
    assert len(set(addresses)) == len(addresses)


# ---------------------------------------------------------------------------- the whole step


WHOLE_STEPS: dict[str, dict[str, Any]] = {
    "Adam": {},
    "AdamW": {"optim": partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1)},
    "AMSGrad": {"optim": partial(torch.optim.Adam, lr=0.05, amsgrad=True)},
    "SGD": {"optim": partial(torch.optim.SGD, lr=0.05)},
    "momentum": {"optim": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True)},
    "Pyro's Adam": {"optim": pyro.optim.Adam({"lr": 0.05, "betas": (0.8, 0.99)})},
    "Pyro's clip_norm": {"optim": pyro.optim.Adam({"lr": 0.05}, {"clip_norm": 0.01})},
    "clip_norm": {"clip_norm": 0.01},
    "guarded": {"guarded": True},
    "a rate for each": {"optim": pyro.optim.Adam(lambda name: {"lr": 0.01 * len(name)})},
    "a schedule": {"between": lambda step, svi: set_group(svi, lr=0.1 / (1 + step))},
    "other betas on the way": {
        "between": lambda step, svi: step == 2 and set_group(svi, betas=(0, 0))
    },
}


def set_group(svi: SVI, **settings: Any) -> None:
    for group in svi.optimizer.param_groups if svi.optimizer else ():
        group.update(settings)


@pytest.mark.parametrize(
    "name",
    some(
        WHOLE_STEPS,
        "AMSGrad",
        "momentum",
        "Pyro's clip_norm",
        "a rate for each",
        "a schedule",
        "other betas on the way",
    ),
)
def test_whole_steps_under_every_optimiser(name: str) -> None:
    options = {"whole": True, "sizes": [6] * 4, **WHOLE_STEPS[name]}
    found = both(partial(small, Constrained), Trace_ELBO, **options)
    assert found.replayed == [False] + [True] * 3
    assert len(found.svi._whole._recorder._recordings) == 1


def test_other_optimisers_step_after_recorded_gradients() -> None:
    found = both(partial(small, Small), Trace_ELBO, whole=True, optim=torch.optim.Rprop)
    assert found.replayed == [False] + [True] * 3
    assert not found.svi._whole._recorder._recordings


def test_state_loaded_on_the_way_counts() -> None:
    def load(step: int, svi: SVI) -> None:
        if step == 2:
            state = svi.optimizer.state_dict()
            for of_parameter in state["state"].values():
                of_parameter["exp_avg"].mul_(0.5)
            svi.optimizer.load_state_dict(state)

    options = {"whole": True, "sizes": [6] * 4, "between": load}
    assert all(both(partial(small, Small), Trace_ELBO, **options).replayed[1:])


class Syncs(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    names = ("_local_scalar_dense", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self.names
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"guarded": True, "clip_norm": 0.1}], ids=str)
def test_nothing_returns_to_the_host_in_a_step(options) -> None:
    svi = run(partial(small, Small), Trace_ELBO(), "recorded", whole=True, **options).svi
    batch = torch.ones(6, DIMS)
    with Syncs() as syncs:
        losses = [svi.update(batch) for _ in range(5)]
    assert svi.recorded
    assert syncs.count == 0
    with syncs:
        assert svi.step(batch) != losses[0].item()
    assert syncs.count == 2


def test_batches_are_gathered_within_the_step() -> None:
    data = (torch.rand(20, DIMS, generator=torch.Generator().manual_seed(1)) * 255).byte()

    def prepare(index: Tensor) -> tuple[Tensor, ...]:
        return (Binarize(255)(data.index_select(0, index)),)

    def losses(engine: str) -> list[float]:
        torch.manual_seed(3)
        pair = small(Small)
        program, updates = Program(pair.model, pair.guide), Updates(adam, None, guarded=False)
        step = Step(program, ELBO(), updates, engine=engine, prepare=prepare)
        found = [float(step.update(torch.randperm(20)[:6])) for _ in range(4)]
        assert step.recorded is (engine == "recorded")
        return found

    assert losses("recorded") == losses("eager")


@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_after_a_loss_that_is_not_finite_nothing_is_updated(engine: str) -> None:
    found = run(partial(small, Small), Trace_ELBO(), engine, whole=True, guarded=True)
    svi, before = found.svi, found.state
    assert (svi.updates.failed.item(), svi.updates.num_made.item()) == (0, len(SIZES))
    bad = torch.full((6, DIMS), float("nan"))
    with warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.filterwarnings("ignore", message="Encountered NaN")
        losses = [svi.step(batch) for batch in (bad, torch.ones(6, DIMS))]
    assert math.isnan(losses[0])
    assert math.isfinite(losses[1])
    assert (svi.updates.failed.item(), svi.updates.num_made.item()) == (1, len(SIZES))
    assert same(copies(svi.parameters), before["parameters"])
    assert same(copies(of_optimizer(svi)), before["optimizer"])


def test_gradients_add_up() -> None:
    x = torch.ones(5, DIMS)

    def once_more(step: int, svi: SVI) -> None:
        if step % 2:
            svi.loss_and_grads(x)

    found = both(partial(small, Small), OBJECTIVES["looped"], between=once_more)
    assert any(found.replayed)


def test_handlers_around_a_step_count() -> None:
    def steps(engine: str) -> list[float]:
        found = run(partial(small, Small), Trace_ELBO(), engine, sizes=(6, 6))
        losses = []
        for scale in (1.0, 0.5, 2.0):
            with poutine.scale(scale=scale):
                losses.append(found.svi.step(torch.ones(5, DIMS)))
        losses.append(found.svi.step(torch.ones(5, DIMS)))
        assert found.svi.recorded is (engine == "recorded")
        return losses

    assert steps("recorded") == steps("eager")


def test_torchs_own_settings_count() -> None:
    def steps(engine: str) -> list[float]:
        found = run(partial(small, Small), Trace_ELBO(), engine, sizes=(6, 6))
        losses = []
        for enabled in (True, True, False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                losses.append(found.svi.step(torch.ones(6, DIMS)))
            assert found.svi.recorded is (engine == "recorded")
        return losses

    assert steps("recorded") == steps("eager")


# ---------------------------------------------------------------------------- refused


HERE = r"recorded\.py:\d+: "
REFUSED = {
    "branch": (Branches, HERE + r"if z\.sum\(\) > 0: \("),
    "item": (Items, HERE + r".*\.item\(\)"),
    "flag": (Flag, HERE + r".*self\.flag > 0"),
    "tolist": (Lists, HERE + r".*self\.flag\.tolist\(\)"),
    "Python's random": (OfPython, HERE + r".*random\.random.*Python's random numbers"),
    "numpy's random": (OfNumpy, HERE + r".*np\.random\.rand.*numpy's random numbers"),
    "own generator": (OwnGenerator, HERE + r".*source\.random.*source's random numbers"),
    "own Random": (partial(OwnGenerator, random.Random), HERE + ".*source's random numbers"),
    "seeds": (Seeds, "does not give its numbers"),
    "counter": (Counts, HERE + r"self\.num_calls \+= 1 \(.*changes Counts\.num_calls"),
    "list": (Appends, HERE + r"self\._calls\.append\(1\) \(.*changes Appends\._calls"),
    "iterator": (Iterates, "Iterates.numbers is an iterator"),
    "LSTM": (LongShortTerm, r"a replay of its operations fails \(.*'workspace'"),
    "cumulative batch norm": (CumulativeNorm, HERE + ".*asks for the value of a tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_recorded_runs_eagerly_and_says_why(name: str) -> None:
    leaf, said = REFUSED[name]
    expected = run(partial(small, leaf), Trace_ELBO(), "eager")
    with pytest.warns(UserWarning, match=f"running eagerly, since .*{said}") as caught:
        found = run(partial(small, leaf), Trace_ELBO(), "recorded")
    assert len(caught) == 1
    assert Path(caught[0].filename).name == "recorded.py"
    assert not any(found.replayed)
    assert_same(found, expected)


def test_auto_runs_eagerly_without_a_word_what_cannot_be_recorded(monkeypatch) -> None:
    monkeypatch.setattr(replaying, "EAGER_CALLS", 0)
    build = partial(small, Branches)
    found = run(build, Trace_ELBO(), "auto")
    assert not any(found.replayed)
    assert_same(found, run(build, Trace_ELBO(), "eager"))


OTHER_OBJECTIVES = {
    "RenyiELBO": partial(RenyiELBO, num_particles=2),
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "TraceEnum_ELBO": partial(TraceEnum_ELBO, strict_enumeration_warning=False),
    "own_loss": lambda: own_loss,
}


def own_loss(model, guide, *args):
    return Trace_ELBO().differentiable_loss(model, guide, *args)


@pytest.mark.parametrize("name", OTHER_OBJECTIVES)
def test_objectives_that_look_at_values_run_eagerly(name: str) -> None:
    expected = run(partial(small, Small), OTHER_OBJECTIVES[name](), "eager")
    with pytest.warns(UserWarning, match=f"running eagerly, since {name} "):
        found = run(partial(small, Small), OTHER_OBJECTIVES[name](), "recorded")
    assert_same(found, expected)


def test_other_arguments_than_tensors_run_eagerly() -> None:
    svi = run(partial(small, Small), Trace_ELBO(), "recorded", sizes=(6, 6)).svi
    with pytest.warns(UserWarning, match="other arguments than tensors"):
        svi.step(x=torch.ones(6, DIMS))


def test_too_many_shapes_run_eagerly() -> None:
    sizes = (*range(1, 7), *range(1, 7))
    build = partial(small, Small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vae.recording.recorder._MAX_RECORDINGS", 3)
        with pytest.warns(UserWarning, match="batches come in more than 3 shapes"):
            found = run(build, Trace_ELBO(), "recorded", sizes=sizes)
    assert found.replayed == [False, True, True, True] + [False] * 8
    assert_same(found, run(build, Trace_ELBO(), "eager", sizes=sizes))


# ---------------------------------------------------------------------------- no trace


def snapshot(svi: SVI) -> dict[str, Any]:
    store = pyro.get_param_store()
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "modules": [copies(m.state_dict()) for m in svi.program.reachable],
        "attributes": [{**vars(m)} for root in svi.program.reachable for m in root.modules()],
        "gradients": copies({n: p.grad for n, p in svi.parameters.items()}),
        "store": dict(store._params),
        "settings": pyro.settings.get(),
        "patched": [getattr(trace_elbo_module, n) for n in ("torch_item", "warn_if_nan")],
        "stack": list(poutine.runtime._PYRO_STACK),
        "tracing": sys.gettrace(),
    }


OF_STATE = (
    "batch norm and dropout",
    "constrained, tied, unused",
    "scheduled",
    "own torch generator",
)
TRACELESS = {
    **{name: partial(small, RECORDED[name]) for name in OF_STATE},
    "counts": partial(small, Counts),
    "appends": partial(small, Appends),
    "own generator": partial(small, OwnGenerator),
    "raises": partial(small, Raises),
    "late in a module": partial(small, Late),
    "late in the store": late_function,
    "pyro.param": functions_with_params,
}


@pytest.mark.parametrize("name", TRACELESS)
def test_recording_leaves_no_trace(name: str) -> None:
    pair = TRACELESS[name]()
    svi = SVI(pair.model, pair.guide, adam, Trace_ELBO(), engine="recorded")
    svi.step(*pair.args)
    before = snapshot(svi)
    with contextlib.suppress(NotRecordable):
        svi._gradients._recorder._record(svi.parameters, pair.args)
    assert identical(snapshot(svi), before)


def identical(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, Tensor):
        return a is b or torch.equal(a, b)
    return a is b or bool(a == b)


def test_a_second_program_is_untouched() -> None:
    alone = run(functions_with_params, Trace_ELBO(), "recorded", sizes=(6, 6))
    pyro.clear_param_store()
    torch.manual_seed(3)
    first, second = functions_with_params(), functions_with_params()
    a, b = (
        SVI(pair.model, pair.guide, adam, Trace_ELBO(), engine="recorded")
        for pair in (first, second)
    )
    for svi, pair in ((a, first), (b, second)):
        torch.manual_seed(11)
        losses = [svi.step(*(arg[:size] for arg in pair.args)) for size in (6, 6)]
        assert losses == alone.losses
    assert same(copies(a.parameters), alone.state["parameters"])


@pytest.mark.parametrize("num_steps", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow(num_steps) -> None:
    pair = small(Small)
    svi = SVI(pair.model, pair.guide, adam, Trace_ELBO(), engine="recorded")

    def steps(number: int) -> tuple[int, int]:
        for _ in range(number):
            svi.step(*pair.args)
        assert svi.recorded
        gc.collect()
        tensors = sum(issubclass(type(each), Tensor) for each in gc.get_objects())
        return tensors, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    (tensors, kilobytes), after = steps(30), steps(num_steps)
    assert after[0] == tensors
    assert after[1] - kilobytes < 2_000


# ---------------------------------------------------------------------------- compiled


def test_compiled_is_eager_up_to_rounding(monkeypatch, tmp_path) -> None:
    """The second run takes the library that the first one has kept."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    options = {"sizes": [6] * 3, "optim": partial(torch.optim.SGD, lr=0.01)}
    found = run(injected, Trace_ELBO(), "compiled", **options)
    expected = run(injected, Trace_ELBO(), "eager", **options)
    assert found.replayed == [False, True, True]
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.gradients, expected.gradients, rtol=1e-4, atol=1e-5)
    for name in ("ahead._built", "compiling._inductor"):
        monkeypatch.delattr(f"pyro_vae.recording.{name}")
    assert_same(run(injected, Trace_ELBO(), "compiled", **options), found)


def test_a_failing_compiler_leaves_the_recording(monkeypatch) -> None:
    def no_compiler(*args, **options):
        raise RuntimeError("no C++ compiler here\nmore lines")

    for way in ("compile", "aot_compile"):
        monkeypatch.setattr(f"torch._inductor.{way}", no_compiler)
    monkeypatch.setenv(CACHE_VARIABLE, "")
    build = partial(small, Small)
    with pytest.warns(UserWarning, match="only recorded, since no C.. compiler here$") as caught:
        found = run(build, Trace_ELBO(), "compiled", sizes=[6] * 3)
    assert len(caught) == 1
    assert Path(caught[0].filename).name == "recorded.py"
    assert all(found.replayed[1:])
    assert_same(found, run(build, Trace_ELBO(), "eager", sizes=[6] * 3))


def test_what_cannot_be_compiled_is_recorded() -> None:
    build = partial(small, RECORDED["own torch generator"])
    with pytest.warns(UserWarning, match="only recorded, since the program holds a Generator"):
        found = run(build, Trace_ELBO(), "compiled", whole=True)
    assert_same(found, run(build, Trace_ELBO(), "eager", whole=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PROGRAMS, *sorted(RECORDED.keys() - {"own torch generator"})])
def test_compiled_gives_the_same_curve(name: str) -> None:
    """Random numbers are torch's in the same order, so that the first steps differ in rounding."""
    build = PROGRAMS.get(name) or partial(small, RECORDED[name])
    curves = {}
    for engine in ("eager", "compiled"):
        objective = Trace_ELBO(max_plate_nesting=2)
        found = run(build, objective, engine, sizes=[6] * 200, whole=True)
        curves[engine] = torch.tensor(found.losses).double()
    assert found.replayed == [False] + [True] * 199
    torch.testing.assert_close(curves["compiled"][:5], curves["eager"][:5], rtol=1e-4, atol=1e-4)
    late = {engine: curve[100:] for engine, curve in curves.items()}
    noise = sum(curve.var() / len(curve) for curve in late.values()).sqrt()
    assert (late["eager"].mean() - late["compiled"].mean()).abs() < 6 * noise + 1e-3


COMPILED_OBJECTIVES = {
    "ELBO, two particles": partial(ELBO, 2),
    "IWAE": partial(IWAE, 3),
    "analytic": AnalyticELBO,
    "DReG": partial(DReG, 3),
    "Renyi": partial(Renyi, 0.5, 3),
    "PIWAE": partial(PIWAE, 2, 2),
    "free bits": partial(FreeBits, 0.5),
    "total correlation": partial(BetaTCVAE, num_data=100),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED_OBJECTIVES)
def test_compiled_objectives_are_eager_ones(name: str) -> None:
    losses = {}
    for engine in ("eager", "compiled"):
        found = run(
            partial(small, Small), COMPILED_OBJECTIVES[name](), engine, sizes=[6] * 5, whole=True
        )
        losses[engine] = found.losses
    assert found.replayed == [False] + [True] * 4
    torch.testing.assert_close(losses["compiled"], losses["eager"], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------- fit


def fitted(engine: str, out: Path | None = None, *, resume: bool = False) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    network = partial(MLP, hidden=(8,))
    vae = VAE.assemble((3,), (2,), prior=DiagonalNormal, likelihood=Normal, network=network)
    settings = {"epochs": 3, "batch_size": 7, "checkpoint_seconds": 0.0}
    done = fit(vae, x, out=out, resume=resume, engine=engine, clip_norm=5.0, **settings)
    return done.history, dict(vae.state_dict())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("whole")
    return out, fitted("eager", out)


def test_fit_gives_the_same_bits(whole) -> None:
    assert same(fitted("recorded"), whole[1])


@pytest.mark.parametrize(
    "engines",
    [("recorded", "eager"), pytest.param(("eager", "recorded"), marks=pytest.mark.slow)],
)
def test_a_killed_run_goes_on_under_either_engine(tmp_path, engines, whole) -> None:
    killed_and_resumed(tmp_path, *engines)
    assert same(final(tmp_path), final(whole[0]))


@pytest.mark.slow
def test_a_killed_compiled_run_goes_on_to_the_same_bits(tmp_path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    fitted("compiled", tmp_path / "whole")
    killed_and_resumed(tmp_path / "killed", "compiled", "compiled")
    assert same(final(tmp_path / "killed"), final(tmp_path / "whole"))


def killed_and_resumed(out: Path, first: str, second: str) -> None:
    original = checkpoint.save

    def stop(*args: Any, **options: Any) -> Any:
        path = original(*args, **options)
        if options["step"] == 8:
            os._exit(137)
        return path

    def run_and_die() -> None:
        checkpoint.save = stop
        fitted(first, out)

    _, status = os.waitpid(child(run_and_die), 0)
    assert os.WEXITSTATUS(status) == 137
    fitted(second, out, resume=True)
