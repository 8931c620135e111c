"""Compiled steps: optimisers written out, and libraries that are kept, and never another's."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from recorded import Small
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.engine.svi import SVI
from pyro_vae.inference import ELBO
from pyro_vae.recording import ahead
from pyro_vae.recording.pointwise import WrittenOut, give_scalars

# ------------------------------------------------------------------------- optimisers written out

OPTIMISERS = {
    "Adam": partial(torch.optim.Adam, lr=0.05),
    "Adam, decay": partial(torch.optim.Adam, lr=0.05, weight_decay=0.1, betas=(0.5, 0.9), eps=0.1),
    "Adam, AMSGrad": partial(torch.optim.Adam, lr=0.05, amsgrad=True, betas=(0.9, 0.3)),
    "AdamW": partial(torch.optim.AdamW, lr=0.05, weight_decay=0.3),
    "AdamW, maximising": partial(torch.optim.AdamW, lr=0.05, maximize=True),
    "SGD": partial(torch.optim.SGD, lr=0.05),
    "SGD, momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, dampening=0.2),
    "SGD, Nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1),
}


def recorded_step(name: str) -> tuple[SVI, fx.GraphModule, torch.Tensor]:
    torch.manual_seed(0)
    program = Small().double()
    svi = SVI(
        program.model, program.guide, OPTIMISERS[name], ELBO(), engine="recorded", guarded=True
    )
    x = torch.rand(6, 4).double().round()
    for _ in range(3):
        svi.update(x)
    return svi, next(iter(svi._whole._recorder._recordings.values())), x


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_kernel_written_out_takes_its_steps(name):
    """The kernels of torch and the formulas give the same weights, and leave a failed step out."""
    ends = []
    for written_out in (False, True):
        svi, graph, x = recorded_step(name)
        fill, run = (lambda: None), graph
        if written_out:
            fill = give_scalars(graph)
            run = WrittenOut(graph).run
        torch.manual_seed(1)
        for step in range(6):
            if step == 4:
                svi.updates.failed.fill_(1)
            svi.optimizer.param_groups[0]["lr"] = 0.05 / (1 + step)
            svi._rates.update()
            fill()
            with torch.no_grad():
                run(x)
        states = [value for state in svi.optimizer.state.values() for value in state.values()]
        ends.append([*svi.parameters.values(), *states])
    assert svi.updates.num_made == 7  # three before, four here
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


# -------------------------------------------------------------------------------- kept libraries

X = torch.arange(4.0)


def graph_of(factor: float = 3.0) -> fx.GraphModule:
    graph = make_fx(lambda x: (x * factor,), tracing_mode="fake")(X)
    graph.graph.set_codegen(fx.graph.CodeGen())
    graph.recompile()
    return graph


LIBRARY = b"multiplies by 3" * 200


class Runner:
    """Stands for the loader of libraries, which takes this one alone."""

    def __init__(self, path: str, num_models: int) -> None:
        assert Path(path).read_bytes() == LIBRARY

    def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [inputs[0] * 3]


@pytest.fixture
def built(monkeypatch, tmp_path) -> list[int]:
    """An empty folder of libraries; the sizes of inputs that are compiled for.

    A compiled program is compiled, kept and loaded in ``test_recording.py``: it takes seconds.
    """
    sizes: list[int] = []

    def build(graph, inputs):
        sizes.append(len(inputs[0]))
        found = tmp_path / "compiled.so"
        found.write_bytes(LIBRARY)
        return found

    monkeypatch.setattr(ahead, "_built", build)
    monkeypatch.setattr(torch._C._aoti, "AOTIModelContainerRunnerCpu", Runner)
    monkeypatch.setenv(ahead.CACHE_VARIABLE, str(tmp_path / "kept"))
    return sizes


def multiplied(graph: fx.GraphModule | None = None, x: torch.Tensor = X) -> list[float]:
    run = ahead.library(graph or graph_of(), [x])
    return run([x])[0].tolist()


def test_a_library_is_compiled_once(built, tmp_path):
    assert multiplied() == multiplied() == [0.0, 3.0, 6.0, 9.0]
    assert built == [4]
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(torch, "__version__", "9.9"),
        lambda patch: patch.setattr(torch.version, "git_version", "other"),
        lambda patch: patch.setattr(torch, "get_num_threads", lambda: 63),
        lambda patch: patch.setattr(torch, "get_float32_matmul_precision", lambda: "other"),
        lambda patch: patch.setitem(ahead._OPTIONS, "cpp.simdlen", 256),
        lambda patch: patch.setattr(ahead, "_processor", lambda: "flags: mmx"),
        lambda patch: patch.setenv("TORCHINDUCTOR_FREEZING", "1"),
    ],
    ids=["torch", "build", "threads", "products", "options", "processor", "environment"],
)
def test_a_library_of_other_circumstances_is_not_run(built, monkeypatch, change):
    multiplied()
    change(monkeypatch)
    multiplied()
    assert built == [4, 4]


def test_a_library_of_another_graph_or_other_inputs_is_not_run(built):
    multiplied()
    multiplied(graph_of(4.0))
    multiplied(x=torch.arange(8.0)[::2])
    multiplied(x=torch.arange(5.0))
    assert built == [4, 4, 4, 5]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("spoil", [flip, link, cut])
def test_a_library_that_was_changed_is_not_run(built, tmp_path, spoil):
    multiplied()
    (kept,) = (tmp_path / "kept").glob("*.so")
    spoil(kept)
    assert multiplied() == [0.0, 3.0, 6.0, 9.0]
    assert built == [4, 4]


def writable_by_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def of_a_file(folder: Path) -> None:
    folder.touch()


def a_link(folder: Path) -> None:
    folder.symlink_to(folder.parent)


@pytest.mark.parametrize("spoil", [writable_by_others, of_a_file, a_link])
def test_a_folder_that_is_not_safe_is_not_used(built, tmp_path, spoil):
    spoil(tmp_path / "kept")
    with pytest.warns(UserWarning, match="compiled steps are not kept") as caught:
        assert multiplied() == [0.0, 3.0, 6.0, 9.0]
    assert len(caught) == 1
    assert [path.name for path in tmp_path.rglob("*.so")] == ["compiled.so"]


def test_a_full_disk_only_warns(built, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ahead, "replace_file", full)
    with pytest.warns(UserWarning, match="is not kept: No space left"):
        assert multiplied() == [0.0, 3.0, 6.0, 9.0]


def test_an_empty_name_keeps_nothing(built, monkeypatch, tmp_path):
    monkeypatch.setenv(ahead.CACHE_VARIABLE, "")
    multiplied(), multiplied()
    assert built == [4, 4]
    assert not (tmp_path / "kept").exists()


def test_processes_that_keep_the_same_leave_one(built, tmp_path):
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if multiplied() == [0.0, 3.0, 6.0, 9.0] else 1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert len(list((tmp_path / "kept").iterdir())) == 1
    multiplied()
    assert not built


def test_the_oldest_are_given_up(built, monkeypatch, tmp_path):
    monkeypatch.setattr(ahead, "_MAX_KEPT", 2)
    for factor in (1.0, 2.0):
        multiplied(graph_of(factor))
    os.utime(min((tmp_path / "kept").iterdir(), key=lambda path: path.stat().st_mtime), (1, 1))
    multiplied(graph_of(3.0))
    multiplied(graph_of(2.0))
    assert built == [4, 4, 4]
    assert len(list((tmp_path / "kept").iterdir())) == 2
