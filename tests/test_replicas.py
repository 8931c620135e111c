"""Replicas trained as one graph come out as from runs of their own, and as ordinary programs."""

from __future__ import annotations

import copy
import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from bits import same
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from quick import some
from recorded import (
    DIMS,
    LATENTS,
    RECORDED,
    Autoregressive,
    BatchNormAndDropout,
    Constrained,
    Discrete,
    Items,
    MixturePrior,
    Small,
)
from runs import child, final
from torch import Tensor, nn

from pyro_vae import VAE, fit
from pyro_vae.components import MLP
from pyro_vae.engine import Binarize, TrainingError, checkpoint
from pyro_vae.inference import IWAE
from pyro_vae.recording import replaying
from pyro_vae.replicas import runs, vectorizing
from pyro_vae.replicas.joint import JointStep

COUNTS = torch.randint(0, 17, (25, DIMS), generator=torch.Generator().manual_seed(7))
X = (COUNTS > 8).double()
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 7, "seed": 5}
NUM_REPLICAS = 2
JOINT = [NUM_REPLICAS] * 5  # of three an epoch; the first step of each is its own


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Compute in float64, where rounding is far below any mistake."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def joint_steps(monkeypatch) -> list[int]:
    """Collect how many replicas each joint step had."""
    taken: list[int] = []
    original = JointStep.__call__

    def counting(self, batches):
        losses = original(self, batches)
        if losses is not None:
            taken.append(len(losses))
        return losses

    monkeypatch.setattr(JointStep, "__call__", counting)
    return taken


def of_modules(program: Any) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in program.state_dict().items()}


def close(found: Any, expected: Any, error: float = 1e-10) -> bool:
    if isinstance(found, Tensor):
        return torch.allclose(found, expected, rtol=error, atol=error, equal_nan=True)
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(
            close(found[k], expected[k], error) for k in found
        )
    if isinstance(found, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return math.isclose(found, expected, rel_tol=error, abs_tol=error)


def alone(program: Any, data: Any, **options: Any) -> tuple[list[dict[str, Any]], Any]:
    """Train one program by itself, in plain Pyro; return its curve and its state."""
    found = fit(program, data, **{**SETTINGS, **options, "engine": "eager"})
    return found.history, of_modules(program)


def assert_equal_single_runs(program: Any, data: Any = X, engine="recorded", **options) -> Any:
    """Hold copies of one program against runs of their own."""
    build = options.pop("objective", None)
    expected = []
    for number in range(NUM_REPLICAS):
        objective = None if build is None else build()
        seed = SETTINGS["seed"] + number
        expected.append(
            alone(copy.deepcopy(program), data, objective=objective, **{**options, "seed": seed})
        )
    found = fit(
        program, data, num_replicas=NUM_REPLICAS, engine=engine,
        objective=None if build is None else build(), **{**SETTINGS, **options},
    )  # fmt: skip
    assert [replica.program is program for replica in found.replicas] == [True, False]
    for replica, (history, state) in zip(found.replicas, expected, strict=True):
        assert close(replica.history, history)
        assert close(of_modules(replica.program), state)
    curves = [[record["train_nats"] for record in replica.history] for replica in found.replicas]
    assert curves[0] != curves[1]
    assert found.history is found.replicas[0].history
    return found


def mlp() -> VAE:
    return VAE.assemble((DIMS,), (LATENTS,), network=partial(MLP, hidden=(5,)))


# ---------------------------------------------------------------------------- the same curves


class FrozenBias(BatchNormAndDropout):
    """Without the bias before the batch norm, whose gradient is nothing but rounding.

    Adam divides it by its own size, and so makes it as large as any other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder[1].bias.requires_grad_(False)


class Weighted(Small):
    """A buffer weighs the KL; a plain tensor changes by itself; noise is thrown away."""

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))
        self.growing = torch.tensor(1.0)

    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) * self.growing

    def model(self, x: Tensor) -> None:
        with torch.no_grad():
            self.growing.mul_(1.02)
        with pyro.plate("data", len(x)):
            torch.randn(3)
            with poutine.scale(scale=self.weight):
                z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with poutine.scale(scale=self.weight):
            super().guide(x)


class EveryDraw(Small):
    """Draws in all the ways that do not depend on values, into new and into old tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.zeros(DIMS))

    def logits(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            self.drawn.uniform_(-0.1, 0.1)
        logits = super().logits(z) + self.drawn
        logits = logits * (1 + 0.1 * torch.empty_like(logits.mT).exponential_(3.0).mT)
        logits = logits + 0.1 * torch.randint(-2, 3, (DIMS,)) + 0.1 * torch.randn_like(logits)
        logits = logits + 0.1 * torch.zeros(DIMS).log_normal_(0.0, 0.5) + 0.1 * torch.rand(())
        keep = torch.nn.functional.dropout(torch.ones(DIMS), 0.3)
        return logits * keep * (torch.rand_like(logits) < 0.9)


class Labelled(Small):
    def __init__(self) -> None:
        super().__init__()
        self.of_label = nn.Embedding(3, LATENTS)

    def model(self, x: Tensor, label: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.of_label(label), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(z)).to_event(1), obs=x)

    def guide(self, x: Tensor, label: Tensor) -> None:
        super().guide(x)


class LabelledNorm(Labelled, FrozenBias):
    pass


class ChangingDraws(EveryDraw, Weighted):
    pass


LABELS = torch.arange(len(X)) % 3
COUNTED = COUNTS.to(torch.uint8)
PROGRAMS: dict[str, Any] = {
    "batch norm, dropout, labels": LabelledNorm,
    "GRU": RECORDED["GRU"],
    "IAF posterior": Autoregressive,
    "mixture prior": MixturePrior,
    "constrained, tied, unused": Constrained,
    "tensors that change, every draw": ChangingDraws,
    "labels": Labelled,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "smaller last batch": {"batch_size": 8},
    "dynamic binarisation": {"data": COUNTED, "observation": Binarize(16)},
    "IWAE": {"objective": partial(IWAE, 4)},
    "looped particles": {"objective": partial(Trace_ELBO, num_particles=2)},
    "clip_norm": {"clip_norm": 0.01},
    "schedule": {"schedule": lambda t: 3.0 - 2.0 * t},
    "AdamW": {"optim": partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1)},
    "momentum": {"optim": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, nesterov=True)},
    "a rate for each": {"optim": pyro.optim.Adam(lambda name: {"lr": 0.001 * len(name)})},
}


# Each way of training once, with the programs that depend on most; the rest is slow.
TOGETHER = {
    "batch norm, dropout, labels": (
        "smaller last batch",
        "clip_norm",
        "schedule",
        "IWAE",
        "momentum",
    ),
    "tensors that change, every draw": ("a rate for each",),
}


def test_each_way_is_among_them() -> None:
    ways = [way for ways in TOGETHER.values() for way in ways]
    # Binarisation is streamed, below; a step with AdamW or in a loop is recorded as others are.
    assert {*ways, "dynamic binarisation", "AdamW", "looped particles"} == OPTIONS.keys()


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        *TOGETHER.items(),
        *(pytest.param("VAE", (way,), marks=pytest.mark.slow) for way in OPTIONS),
        *(pytest.param(name, (), marks=pytest.mark.slow) for name in PROGRAMS),
    ],
    ids=str,
)
def test_each_program_equals_its_single_runs(name: str, ways: tuple, joint_steps) -> None:
    options: dict[str, Any] = {"data": (X, LABELS) if "labels" in name else X}
    for way in ways:
        options |= OPTIONS[way]
    assert_equal_single_runs(PROGRAMS.get(name, mlp)(), options.pop("data"), **options)
    assert joint_steps == JOINT


@pytest.fixture
def soon(monkeypatch) -> None:
    """Let ``auto`` record after one epoch."""
    for module in (replaying, runs):
        monkeypatch.setattr(module, "EAGER_CALLS", 3)


def test_auto_waits_and_then_joins(soon, joint_steps) -> None:
    assert_equal_single_runs(mlp(), engine="auto")
    assert joint_steps == [NUM_REPLICAS] * 3


def test_streamed_batches(monkeypatch, joint_steps) -> None:
    monkeypatch.setattr("pyro_vae.engine.data.Batches._move", lambda self: False)
    assert_equal_single_runs(mlp(), COUNTED, observation=Binarize(16))
    assert joint_steps == JOINT


def test_eager_replicas_are_eager(joint_steps) -> None:
    assert_equal_single_runs(mlp(), engine="eager")
    assert joint_steps == []


IMPATIENT: dict[str, Any] = {
    "patience": 1,
    "epochs": 5,
    "schedule": lambda t: 1.0,
    "optim": partial(torch.optim.Adam, lr=0.01),
}


def test_patience_ends_each_replica_by_itself(joint_steps) -> None:
    found = assert_equal_single_runs(mlp(), **IMPATIENT)
    assert [replica.epochs for replica in found.replicas] == [5, 2]
    assert joint_steps == JOINT


# ---------------------------------------------------------------------------- tensors that differ


def test_values_of_a_tensor_equal_their_single_runs(joint_steps) -> None:
    """A list takes programs as they are: own weights, and own values of a buffer."""
    programs = [Weighted(weight) for weight in (0.01, 4.0)]
    expected = [
        alone(copy.deepcopy(program), X, seed=5 + number) for number, program in enumerate(programs)
    ]
    found = fit(programs, X, engine="recorded", **SETTINGS)
    for replica, program, (history, state) in zip(found.replicas, programs, expected, strict=True):
        assert replica.program is program
        assert close(replica.history, history)
        assert close(of_modules(program), state)
    assert joint_steps == JOINT


def test_pairs_of_functions(joint_steps) -> None:
    """Plain functions cannot be copied, but each pair built anew is a program of its own."""

    def build() -> Any:
        vae = mlp()

        def model(x: Tensor) -> None:
            pyro.module("vae", vae)
            vae.model(x)

        return model, lambda x: vae.guide(x), vae

    built = [build() for _ in range(2)]
    expected = []
    for number, (_, _, vae) in enumerate(built):
        expected.append(alone(copy.deepcopy(vae), X, seed=5 + number))
    found = fit([each[:2] for each in built], X, engine="recorded", **SETTINGS)
    for replica, (history, _) in zip(found.replicas, expected, strict=True):
        assert close(replica.history, history)
    assert joint_steps == JOINT


def test_python_numbers_that_differ_keep_replicas_apart(joint_steps) -> None:
    class Scaled(Small):
        factor = 1.0

        def logits(self, z: Tensor) -> Tensor:
            return self.decoder(z) * self.factor

    programs = [Scaled(), Scaled()]
    programs[1].factor = 1.5
    expected = [alone(copy.deepcopy(p), X, seed=5 + place) for place, p in enumerate(programs)]
    with pytest.warns(UserWarning, match="other constants in replica 1 than in 0"):
        found = fit(programs, X, engine="recorded", **SETTINGS)
    for replica, (history, _) in zip(found.replicas, expected, strict=True):
        assert close(replica.history, history)
    assert joint_steps == []


# ---------------------------------------------------------------------------- one after the other


class Masked(Small):
    def logits(self, z: Tensor) -> Tensor:
        logits = self.decoder(z)
        return logits.masked_fill(z.new_ones(DIMS) > 2, 0.0).index_put(
            [logits > 0.5], torch.tensor(0.5)
        )


APART: dict[str, tuple[Any, dict[str, Any], str]] = {
    "discrete guide": (Discrete, {}, "bernoulli.*draws by values"),
    "boolean masks": (Masked, {}, "no joint form"),
    "values asked for": (Items, {}, "value of a tensor"),
    "Pyro's Renyi ELBO": (
        Small,
        {"objective": partial(RenyiELBO, num_particles=2, vectorize_particles=True)},
        "RenyiELBO may depend on values",
    ),
    "no fused kernel": (Small, {"optim": partial(torch.optim.RMSprop, lr=1e-3)}, "RMSprop"),
    "Pyro's clipping": (
        Small, {"optim": pyro.optim.Adam({"lr": 0.05}, {"clip_norm": 0.01})}, "clips each"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", some(APART, "discrete guide", "values asked for"))
def test_what_has_no_joint_step_still_equals_its_single_runs(name: str, joint_steps) -> None:
    build, options, reason = APART[name]
    program = build()
    with pytest.warns(UserWarning, match=".") as caught:
        assert_equal_single_runs(program, **options)
    *others, warning = [w for w in caught if "UserWarning" in str(w.category)]
    expected = ("running eagerly", "depends on the others of its batch")
    assert all(any(words in str(other.message) for words in expected) for other in others)
    assert "trained one after the other, since" in str(warning.message)
    assert warning.filename == __file__
    assert re.search(reason, str(warning.message)), warning.message
    assert joint_steps == []


@pytest.mark.slow
def test_auto_says_nothing_where_replicas_stay_apart(soon, joint_steps) -> None:
    assert_equal_single_runs(Discrete(), engine="auto")
    assert joint_steps == []


def swap_noise(monkeypatch) -> None:
    original = vectorizing.take_out_draws
    monkeypatch.setattr(
        vectorizing, "take_out_draws", lambda graph, states: original(graph, states[::-1])
    )


def share_weights(monkeypatch) -> None:
    monkeypatch.setattr(
        vectorizing, "_joined", lambda own, changing, stacks: [(m[0], None) for m in own]
    )


def forget_a_gradient(monkeypatch) -> None:
    original = vectorizing.Form._run

    def run(self, args, held):
        losses, gradient, *gradients = original(self, args, held)
        return (losses, gradient * (1 + 1e-6), *gradients)

    monkeypatch.setattr(vectorizing.Form, "_run", run)


@pytest.mark.parametrize(
    "mutate",
    [
        swap_noise,
        *(pytest.param(m, marks=pytest.mark.slow) for m in (share_weights, forget_a_gradient)),
    ],
)
def test_a_wrong_joint_step_is_noticed(mutate, monkeypatch, joint_steps) -> None:
    mutate(monkeypatch)
    programs = [Small(), Small()]
    expected = [alone(copy.deepcopy(p), X, seed=5 + place) for place, p in enumerate(programs)]
    with pytest.warns(UserWarning, match="does not give the replicas' own numbers"):
        found = fit(programs, X, engine="recorded", **SETTINGS)
    for replica, (history, _) in zip(found.replicas, expected, strict=True):
        assert close(replica.history, history)
    assert joint_steps == []


# ---------------------------------------------------------------------------- changes on the way


CHANGES = {
    "another number": lambda program: setattr(program, "factor", 1.5),
    "another tensor": lambda program: setattr(program, "offset", torch.tensor(0.7)),
    "other values": lambda program: program.offset.fill_(0.7),
    "other memory": lambda program: setattr(program.decoder.bias, "data", torch.ones(DIMS)),
}


class Changing(Small):
    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.tensor(0.1)

    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) * self.factor + self.offset


@pytest.mark.parametrize("name", some(CHANGES, "another number"))
def test_a_change_on_the_way_counts(name: str, joint_steps) -> None:
    programs = [Changing(), Changing()]

    def run(programs: list[Any], seed: int, **options: Any) -> Any:
        def schedule(progress: float) -> float:  # called once a step, for each replica
            if progress == 0.5:
                for program in programs:
                    CHANGES[name](program)
            return 1.0

        return fit(programs, X, **{**SETTINGS, **options, "seed": seed}, schedule=schedule)

    own = [copy.deepcopy(program) for program in programs]
    expected = [run([each], 5 + number, engine="eager") for number, each in enumerate(own)]
    found = run(programs, 5, engine="recorded")
    for replica, single, program in zip(found.replicas, expected, own, strict=True):
        assert close(replica.history, single.history)
        assert close(of_modules(replica.program), of_modules(program))
    assert len(joint_steps) == (5 if name == "other values" else 4)


# ---------------------------------------------------------------------------- ordinary programs


def test_programs_are_apart_afterwards(joint_steps) -> None:
    programs, bystander = [Weighted(), Weighted()], Weighted()
    before = of_modules(bystander)
    random_state = torch.get_rng_state()
    fit(programs, X, engine="recorded", **SETTINGS)
    assert joint_steps
    assert torch.equal(torch.get_rng_state(), random_state)
    assert close(of_modules(bystander), before, 0.0)
    sizes = {
        tensor.untyped_storage().nbytes() - tensor.nbytes
        for program in programs
        for tensor in (*program.state_dict().values(), program.growing)
    }
    assert sizes == {0}
    other = of_modules(programs[1])
    with torch.no_grad():
        for tensor in (*programs[0].parameters(), *programs[0].buffers()):
            tensor.fill_(7.0)
    assert close(of_modules(programs[1]), other, 0.0)
    assert all(parameter.grad is None for parameter in programs[1].parameters())


def test_one_replica_is_an_ordinary_run() -> None:
    torch.set_default_dtype(torch.float32)
    program = mlp()
    history, state = alone(copy.deepcopy(program), X)
    found = fit(program, X, num_replicas=1, engine="recorded", **SETTINGS)
    assert close(found.history, history, 0.0)
    assert close(of_modules(program), state, 0.0)
    (replica,) = found.replicas
    assert replica.program is program
    assert (replica.epochs, replica.steps, replica.seed) == (2, 6, 5)


# ---------------------------------------------------------------------------- refusals


class Bad(Small):
    """Fails from one step on, in one replica."""

    def __init__(self) -> None:
        super().__init__()
        self.growing = torch.tensor(1.0)

    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) / self.growing


def test_a_loss_that_is_not_finite_says_whose_it_is(joint_steps) -> None:
    """No replica has stepped since, where they step together."""
    programs = [Bad(), Bad()]
    kept: dict[str, Tensor] = {}

    def schedule(progress: float) -> float:
        if progress == 1 / 6:
            programs[1].growing.fill_(0.0)
            kept.update(of_modules(programs[0]))
        return 1.0

    with pytest.raises(TrainingError, match=r"replica 1: the loss is nan at step 2 \(epoch 1\)"):
        fit(programs, X, engine="recorded", schedule=schedule, **SETTINGS)
    assert joint_steps == [2] * 2
    assert close(of_modules(programs[0]), kept, 0.0)


def with_other_shape() -> Any:
    return VAE.assemble((DIMS,), (3,), network=partial(MLP, hidden=(5,)))


def with_shared_weights() -> list[Any]:
    first, second = Small(), Small()
    second.decoder = first.decoder
    return [first, second]


def plain_functions() -> Any:
    vae = mlp()
    return lambda x: vae.model(x), lambda x: vae.guide(x)


class Uncopyable(Small):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("made of glass")


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "none": (mlp, {"num_replicas": 0}, "num_replicas=0: give an integer of 1 or more"),
    "half": (mlp, {"num_replicas": 1.5}, "num_replicas=1.5: expected a whole number"),
    "an empty list": (list, {}, "the list of programs is empty"),
    "another number": (
        lambda: [mlp(), mlp()], {"num_replicas": 3}, "num_replicas=3 with a list of 2 programs"
    ),
    "other shapes": (
        lambda: [mlp(), with_other_shape()],
        {},
        "programs 0 and 1 differ in their parameters: '.*' is .* in one and .* in the other",
    ),
    "another program": (lambda: [mlp(), Small()], {}, "programs 0 and 1 differ"),
    "shared weights": (with_shared_weights, {}, "replicas 0 and 1 share the parameter"),
    "one program twice": (lambda: [mlp()] * 2, {}, "replicas 0 and 1 share the parameter"),
    "not to be copied": (Uncopyable, {"num_replicas": 2}, "cannot be copied .made of glass."),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line(name: str) -> None:
    build, options, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        fit(build(), X, **SETTINGS, **options)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_all_share_and_change_is_refused() -> None:
    shared = torch.tensor(1.0)
    programs = [Weighted(), Weighted()]
    for program in programs:
        program.growing = shared
    with pytest.raises(ValueError, match="all replicas share"):
        fit(programs, X, engine="recorded", **SETTINGS)


def test_more_replicas_than_memory_is_one_line(monkeypatch) -> None:
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore")

    monkeypatch.setattr(vectorizing, "strided_empty", full)
    with pytest.raises(ValueError, match="num_replicas=2 do not fit in the memory of cpu") as e:
        fit(mlp(), X, num_replicas=2, engine="recorded", **SETTINGS)
    assert "\n" not in str(e.value)
    assert "lower num_replicas or batch_size" in str(e.value)


# ---------------------------------------------------------------------------- checkpoints


def train(out: Any, *, resume: bool = False, build: Any = mlp, **options: Any) -> Any:
    torch.manual_seed(0)
    return fit(
        build(), X, out=out, resume=resume, checkpoint_seconds=0.0,
        **{**SETTINGS, "num_replicas": 2, "engine": "recorded", **options},
    )  # fmt: skip


def train_until_save(nth: int, out: Any, **options: Any) -> None:
    """Train in a child that dies when it has written so many checkpoints."""
    original, count = checkpoint.save, itertools.count(1)

    def dying(*args: Any, **options: Any) -> Any:
        path = original(*args, **options)
        if next(count) == nth:
            os._exit(137)
        return path

    def run() -> None:
        checkpoint.save = dying
        train(out, **options)

    _, status = os.waitpid(child(run), 0)
    assert os.WEXITSTATUS(status) == 137


def finals(out: Any, num_replicas: int = 2) -> list[Any]:
    return [final(out / f"replica-{number}") for number in range(num_replicas)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Any:
    out = tmp_path_factory.mktemp("whole")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    train(out)
    torch.set_default_dtype(before)
    return out


@pytest.mark.parametrize(
    "nth", [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(13, marks=pytest.mark.slow)]
)
def test_killed_between_two_saves_and_resumed_to_the_same_bits(tmp_path, whole, nth) -> None:
    """At the first save, in the middle, and at the last: one replica is then behind the other."""
    train_until_save(nth, tmp_path)
    train(tmp_path, resume=True)
    assert same(finals(tmp_path), finals(whole))


def test_patience_resumes_to_the_same_bits(tmp_path) -> None:
    """Killed when one replica has ended, and two are at different steps."""
    options = {**IMPATIENT, "num_replicas": 3, "build": mlp, "engine": "eager"}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    train(tmp_path / "whole", **options)
    expected = finals(tmp_path / "whole", 3)
    assert [state["progress"]["epoch"] for state, _ in expected] == [5, 2, 4]
    train_until_save(3 * 6 + 1 + 2 + 1, tmp_path / "killed", **options)
    train(tmp_path / "killed", resume=True, **options)
    assert same(finals(tmp_path / "killed", 3), expected)


def test_a_replicas_folder_is_that_of_an_ordinary_run(tmp_path, whole) -> None:
    shutil.copytree(whole / "replica-1", tmp_path / "run")
    torch.manual_seed(0)
    found = fit(
        mlp(), X, out=tmp_path / "run", resume=True, engine="eager",
        checkpoint_seconds=0.0, **{**SETTINGS, "seed": 6},
    )  # fmt: skip
    assert found.history == finals(whole)[1][0]["progress"]["history"]
    assert same(final(tmp_path / "run"), finals(whole)[1])


def test_more_replicas_than_before_are_refused(tmp_path, whole) -> None:
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(ValueError, match=r"replica-2' has no checkpoint, but '.*replica-0'"):
        train(tmp_path / "run", resume=True, num_replicas=3)
    assert same(finals(tmp_path / "run"), finals(whole))
