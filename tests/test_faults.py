"""Every mistake of a user's and every fault of a machine: one clear line, exit 2, nothing left."""

from __future__ import annotations

import contextlib
import errno
import gzip
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command import PROGRAM, script, train, tree, write_data
from PIL import Image

from pyro_vae.cli import main, runs
from pyro_vae.engine import checkpoint
from pyro_vae.engine.checkpoint import latest, load
from pyro_vae.engine.progress import Clock
from pyro_vae.engine.run_folder import lock
from pyro_vae.files import explained

BASE = ["--data", "real.npy", "--out", "out"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with good data, bad data, bad programs, and a run."""
    folder = tmp_path_factory.mktemp("faults")
    write_data(folder)
    write_bad_data(folder)
    for name, source in PROGRAMS.items():
        (folder / f"{name}.py").write_text(source)
    for name, text in CONFIGURATIONS.items():
        (folder / name).write_text(text)
    (folder / "plain.py").write_text("class Plain: ...\n")
    (folder / "dangling").symlink_to("nowhere")
    with contextlib.chdir(folder):
        assert train("--data", "real.npy", "--out", "run") == 0
        assert train("--data", "real.npy", "--out", "wider", "--network.hidden", "[9]") == 0
    return folder


@pytest.fixture
def unloaded():
    """Forget the programs that a test has imported, which are others in another folder."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in PROGRAMS:
            del sys.modules[name]


@pytest.fixture
def untouched(prepared, unloaded, monkeypatch):
    """The folder itself as the working directory, of a test that is held to change nothing."""
    monkeypatch.chdir(prepared)
    return prepared


@pytest.fixture
def folder(prepared, unloaded, tmp_path, monkeypatch):
    """A copy of it as the working directory."""
    path = Path(shutil.copytree(prepared, tmp_path / "here", symlinks=True))
    monkeypatch.chdir(path)
    return path


def refused(capsys, pattern: str, folder: Path, *command: str) -> None:
    """Run a command and hold it to the contract of every fault."""
    before = tree(folder)
    capsys.readouterr()
    started = time.process_time()
    status = train(*command[1:]) if command[0] == "train" else main(list(command))
    took = time.process_time() - started
    shown = capsys.readouterr()
    told = [line for line in shown.err.splitlines() if line.startswith("pyro-vae: ")]
    assert status == 2, shown.err
    assert len(told) == 1, shown.err
    assert shown.err.splitlines()[-1] == told[0]
    assert "Traceback" not in shown.err + shown.out
    assert re.search(pattern, told[0]), told[0]
    assert len(told[0]) < 600
    assert shown.out == ""
    assert tree(folder) == before
    assert took < 5


# Options ------------------------------------------------------------------------------------------

OPTIONS = {
    "--likelihod Normal": "--likelihod: .*did you mean --likelihood",
    "--likelihood Bernouli": r"Bernouli: no such likelihood \(did you mean Bernoulli\?\)",
    "--likelihood Laplac": r"Laplac: no such likelihood \(did you mean Laplace\?\).*any of Pyro's",
    "--likelihood Laplace --likelihood.sclae 3": "sclae: Laplace .*did you mean scale",
    "--likelihood Incomplete --likelihood.family Posson": "Posson: .*did you mean Poisson",
    "--likelihood Pareto": "Pareto cannot be a family .*support moves",
    "--network.hiden [3]": "hiden: MLP takes no such argument; did you mean hidden",
    "--likelihood Normal --likelihood.scal 3": "scal: Normal .*did you mean scale",
    "--likelihood.scale 3": r"--likelihood\.scale: name a class that takes it",
    "--likelihood Normal --likelihood.scale abc": "scale abc: unknown; expected a number, or O",
    "--likelihood Normal --likelihood.scale -1": r"--likelihood\.scale -1\.0: .* positive",
    "--prior Automatic": r"give --prior\.distribution too",
    "--prior Automatic --prior.distribution Laplac": "no distribution named 'Laplac'",
    "--prior os.system": "os.system: not a class derived from .*Family",
    "--prior torch.nn.Linear": "torch.nn.Linear: not a class derived from .*Family",
    "--prior nosuch.Part": "cannot import 'nosuch'.*my_file.py:Part",
    "--prior nosuch.py:Part": "nosuch.py: there is no such file",
    "--prior forgotten_plate.py": "say which class of the file, forgotten_plate.py:MyPrior",
    "--prior forgotten_plate.py:Nothing": "there is no 'Nothing' in it",
    "--prior {class_path:os.system": "expected a name, or a dictionary",
    '--prior={"class_path":"os.system"}': "os.system: not a class derived",
    "--model VAF": r"VAF: no such model \(did you mean VAE\?\)",
    "--model nosuch.py": "nosuch.py: there is no such file",
    "--model broken.py": r"broken.py cannot be imported: ZeroDivisionError: .*; correct it",
    "--model no_guide.py": r"no function 'guide': define model\(x\) and guide\(x\)",
    "--network Convolutional --network.channels [2]": "use MLP for data that are no images",
    "--network Convolutional --network.hidden null": r"hidden None: expected a whole number",
    "--network.hidden null": r"--network\.hidden None: expected numbers, such as 300,300",
    "--network.hidden [8,0]": r"--network\.hidden \(8, 0\): layer sizes are positive integers",
    "--network Recurrent": r"got \(\d,\): give num_symbols if these are symbols, use MLP, or name",
    "--decoder Recurent": r"no such decoder \(did you mean RecurrentDecoder\?\)",
    "--encoder.hidden [3]": r"--encoder\.hidden: name a class that takes it",
    "--objective RenyiELBO --objective.alpha 1": "alpha should not be equal to 1",
    "--objective Trace_ELBO --objective.num_particles 0": "num_particles 0: give 1 or more",
    "--schedule Cosine --schedule.final 3": r"--schedule\.final 3\.0: .* between 0 and 1",
    "--observation Binarize": "Binarize: .* real values from -.*--observation AsFloat",
    "--posterior Bernoulli": "'z' from a Bernoulli, .* a Normal.*--posterior DiagonalNormal",
    "--prior Bernoulli": "'z' from a Normal, .* a Bernoulli.*--prior StandardNormal",
    "--latent 0": "--latent 0: give 1 or more",
    "--latent -3": "--latent -3: give 1 or more",
    "--latent abc": "--latent abc: expected a whole number",
    "--latent 1.5": "--latent 1.5: expected a whole number",
    "--latent []": "--latent: name the size of at least one layer",
    "--latent 3,0": "--latent 3,0: give 1 or more",
    "--latent 3,,2": "--latent 3,,2: expected a whole number",
    "--latent 4,10000000000": r"--latent 4,10000000000: .*GiB.*lower --latent",
    "--latent 3,2 --model VAE": "--latent 3,2: VAE has one layer of latents; .*HierarchicalVAE",
    "--latent 2x2,2 --model TopDownVAE": "the data are no images .*use LadderVAE",
    "--latent 3,2 --model LadderVAE --prior Bernoulli": "a ladder merges diagonal normals",
    "--latent 3,2 --model LadderVAE --posterior Bernoulli": "a ladder merges diagonal normals",
    "--latent 1000000000000": r"--latent 1000000000000: .*GiB.*lower --latent",
    "--batch-size 0": "--batch-size 0: give 1 or more",
    "--batch-size 33": "--batch-size 33 with 32 training rows; choose one from 1 to 32",
    "--lr -1": r"--lr -1\.0: give a number above 0",
    "--lr 0": r"--lr 0\.0: give a number above 0",
    "--lr nan": "--lr nan: expected a finite number",
    "--lr inf": "--lr inf: expected a finite number",
    "--lr abc": "--lr abc: expected a finite number",
    "--objective IWAE --objective.num_particles 0": r"--objective\.num_particles 0: at least one",
    "--model plain.py:Plain": r"not a class derived from torch\.nn\.Module;",
    "--epochs -1": "--epochs -1: give 0 or more",
    "--epochs 1.5": "--epochs 1.5: expected a whole number",
    "--num-samples 0": "--num-samples 0: give 1 or more",
    "--seed -1": "--seed -1: give 0 or more",
    "--seed 9223372036854775808": r"--seed 9223372036854775808: .*below 2\*\*63",
    "--engine fast": "--engine fast: choose from 'auto', 'eager'",
    "--device nope": "--device nope is not here; choose from .*cpu",
    "--device cuda:99": "--device cuda:99 is not here; choose from .*cpu",
    "--patience 0": "--patience 0: give 1 or more",
    "--clip-norm 0": r"--clip-norm 0\.0: give a number above 0",
    "--tensorboard maybe": "--tensorboard maybe: expected true or false",
    "--data": "--data: give it a value",
    "--resume": "--resume: give it a value",
    "stray": "stray: an option begins with --",
    "--config nosuch.yaml": "nosuch.yaml: there is no such file",
    "--config real.npy": "real.npy is not a YAML file of options",
    "--config malformed.yaml": "malformed.yaml is not a YAML file of options: line 3: ",
    "--config list.yaml": "list.yaml cannot be used: a list instead of options",
    "--config unknown.yaml": "--latnet: .*did you mean --latent",
    "--config wrong_type.yaml": "--latent many: expected a whole number",
    "--resume nosuch": "nosuch is no run folder: it has no config.yaml",
}


CONFIGURATIONS = {
    "malformed.yaml": "latent: 2\nprior: {class_path: [\n",
    "list.yaml": "- latent\n",
    "unknown.yaml": "latnet: 3\n",
    "wrong_type.yaml": "latent: many\n",
}


@pytest.mark.parametrize("arguments", OPTIONS)
def test_an_option_that_cannot_be(arguments, untouched, capsys):
    refused(capsys, OPTIONS[arguments], untouched, "train", *BASE, *arguments.split())


COMMANDS = {
    "evaluat run": "no command 'evaluat': choose from train, evaluate",
    "evaluate": "run is missing: --help",
    "evaluate nosuch": "nosuch is no run folder",
    "evaluate run --num-samples 0": "--num-samples 0: give 1 or more",
    "evaluate run --device nope": "--device nope is not here",
    "sample run --num 0": "--num 0: give 1 or more",
    "sample run --seed -1": "--seed -1: give 0 or more",
    "sample run --out drawn.txt": "drawn.txt: .*end it in .npy",
    "plot run --colour red": "--colour: there is no such option",
    "list everything": "everything",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_cannot_be(line, untouched, capsys):
    refused(capsys, COMMANDS[line], untouched, *line.split())


# Data ---------------------------------------------------------------------------------------------


def write_bad_data(folder: Path) -> None:
    real = np.load(folder / "real.npy")
    for name, value in (("nan", np.nan), ("infinite", -np.inf)):
        bad = real.copy()
        bad[7, 1] = value
        np.save(folder / f"{name}.npy", bad)
    np.save(folder / "floats.npy", np.load(folder / "bytes.npy").astype("f4"))
    np.save(folder / "empty.npy", np.zeros((0, 3)))
    np.save(folder / "one.npy", np.zeros((1, 3)))
    np.save(folder / "flat.npy", np.zeros(40))
    np.save(folder / "channels_last.npy", np.zeros((40, 6, 6, 3), "u1"))
    np.save(folder / "text.npy", np.array([["a", "b"]] * 40))
    np.save(folder / "pickled.npy", np.array([{}] * 40, dtype=object), allow_pickle=True)
    np.savez(folder / "labels.npz", x=real, y=np.zeros(39, int))
    np.savez(folder / "negative.npz", x=real, y=np.full(40, -1))
    (folder / "truncated.npy").write_bytes((folder / "real.npy").read_bytes()[:-50])
    (folder / "no_array.npy").write_bytes(b"these are no numbers")
    (folder / "no_zip.npz").write_bytes(b"PK but no more")
    (folder / "no_images").mkdir()
    (folder / "sizes").mkdir()
    for width in (4, 5):
        Image.fromarray(np.zeros((4, width), "u1")).save(folder / "sizes" / f"{width}.png")
    raw = folder / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(b"\0" * 99)[:-9])


DATA = {
    "nan.npy": r"'x' is given nan at index \(\d+, 1\).*--likelihood Incomplete .*family Normal",
    "nan.npy --observation Binarize": r"holds real values from -\d.* to \d.*--observation AsFloat",
    "infinite.npy": r"infinite.npy: 1 infinite values, .*\(7, 1\); repair",
    "empty.npy": r"empty.npy: empty, shape \(0, 3\); give at least 3 rows",
    "one.npy": "one.npy: one datum, .*give 3 or more",
    "flat.npy": r"flat.npy: shape \(40,\), expected .*reshape",
    "channels_last.npy": r"\(40, 6, 6, 3\).*channels last.*transpose\(0, 3, 1, 2\)",
    "text.npy": "text.npy: .*not numeric; give an array",
    "pickled.npy": "pickled.npy.*(pickle|object)",
    "labels.npz": "39 labels for 40 rows; give one label a row",
    "negative.npz": "labels of .*all are missing; leave them out, or give some",
    "truncated.npy": "truncated.npy",
    "no_array.npy": "no_array.npy",
    "no_zip.npz": "no_zip.npz",
    "no_images": "no_images: no images or texts in it; expected PNG",
    "sizes": r"sizes: 5\.png is 5x4 .* but 4\.png is 4x4 .*bring all images to one size",
    "mnits": "unknown data set 'mnits'. Did you mean mnist",
    "nosuch.npy": "nosuch.npy: no such file or folder",
    "mnist --data-root root": "train-images-idx3-ubyte.gz: not an idx3 file.*delete it",
    "grey.npy --likelihood Bernoulli": "Bernoulli, .* 0 or 1, .*grey .*--observation Binarize",
    "bytes.npy --likelihood Bernoulli": r"0\.\.255: binarise .*--likelihood.total_count 255",
    "floats.npy --likelihood Bernoulli": r"0\.\.255: binarise .*--observation Binarize",
    "real.npy --likelihood Bernoulli": "Bernoulli, .*choose a likelihood .*--likelihood Normal",
    "counts.npy --likelihood Binomial --likelihood.total_count 9": "0 to 9, .*largest value to 16",
}


@pytest.mark.parametrize("data", DATA)
def test_data_that_cannot_be_trained_on(data, untouched, capsys):
    refused(capsys, DATA[data], untouched, "train", "--out", "out", "--data", *data.split())


def test_grey_values_are_binarised_as_advised(folder):
    arguments = ["--likelihood", "Bernoulli", "--observation", "Binarize"]
    assert train(*BASE, "--data", "grey.npy", *arguments) == 0


def test_without_a_network(folder, capsys, monkeypatch):
    import torchvision

    def unreachable(*args, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "MNIST", unreachable)
    pattern = r"mnist is not in away .*Name or service.*place train-images.*\.gz.*--data-root"
    arguments = ["--data", "mnist", "--data-root", "away", "--out", "out"]
    refused(capsys, pattern, folder, "train", *arguments)


# Programs -----------------------------------------------------------------------------------------

GUIDE = PROGRAM.index("    def guide")
PROGRAMS = {
    "nothing_observed": PROGRAM.replace(", obs=x", ""),
    "latent_missing": PROGRAM[:GUIDE] + "    def guide(self, x):\n        pass\n",
    "latent_extra": PROGRAM.replace(
        "            pyro.sample('z'",
        "            pyro.sample('extra', dist.Normal(0.0, torch.ones(len(x))))\n"
        "            pyro.sample('z'",
    ),
    "forgotten_plate": PROGRAM.replace('with pyro.plate("data", len(x)):', "if True:"),
    "event_dimension": PROGRAM.replace("1.0).to_event(1), obs=x", "1.0), obs=x"),
    "exploding": PROGRAM.replace(
        "    def guide(self, x):\n",
        "    calls = 0\n\n    def guide(self, x):\n"
        "        MyVAE.calls += self.training and torch.is_grad_enabled()\n"
        "        x = x * float('nan') if MyVAE.calls > 6 else x\n",
    ),
    "classes": PROGRAM.replace(
        "    def guide(self, x):",
        "            c = dist.Categorical(torch.ones(len(x), 99))\n"
        "            pyro.sample('c', c, obs=x[:, 1].abs().long())\n\n"
        "    def guide(self, x):",
    ),
    "broken": "1 / 0\n",
    "no_guide": "def model(x):\n    pass\n",
}
CONVENTION = {
    "nothing_observed": r"the model observes nothing .*'z' \(nothing_observed.py:\d+\).*obs=x",
    "latent_missing": r"the guide has no site 'z'.* \(latent_missing.py:19\): add pyro.sample",
    "latent_extra": r"samples 'extra' \(latent_extra.py:24\), .*remove it from the guide",
    "forgotten_plate": r"'\w' \(forgotten_plate.py:\d+\) is not in the plate .*with pyro.plate",
    "event_dimension": r"'x' \(event_dimension.py:20\).*(to_event)",
}


def line_of(name: str, text: str) -> int:
    lines = PROGRAMS[name].splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


def test_the_lines_that_messages_name_are_those():
    assert line_of("latent_missing", 'sample("z"') == 19
    assert line_of("latent_extra", "extra") == 24
    assert line_of("event_dimension", 'sample("x"') == 20


@pytest.mark.parametrize("name", CONVENTION)
def test_a_program_that_breaks_the_convention(name, untouched, capsys):
    refused(capsys, CONVENTION[name], untouched, "train", *BASE, "--model", f"{name}.py:MyVAE")


def test_data_at_which_a_program_fails_are_named(untouched, capsys):
    arguments = ["--data", "nan.npy", "--model", "classes.py:MyVAE", "--out", "out"]
    assert main(["train", *arguments]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"'x' \(classes.py:\d+\) is given nan at index \(\d+, 1\).*mask it", told), (
        told
    )


def test_a_loss_that_is_not_a_number_leaves_nothing(folder, capsys):
    pattern = r"the loss is -?(nan|inf) at step \d+ \(epoch \d+\), at .*site '[xz]'.*learning rate"
    arguments = [*BASE, "--lr", "1e6", "--epochs", "20"]
    refused(capsys, pattern, folder, "train", *arguments)


@pytest.fixture
def often(monkeypatch):
    """Write a checkpoint after every step."""
    monkeypatch.setattr(Clock, "due", lambda clock: True)


def test_a_loss_that_is_not_a_number_keeps_the_last_good_checkpoint(folder, capsys, often):
    assert train(*BASE, "--model", "exploding.py:MyVAE") == 2
    told = capsys.readouterr().err
    kept = latest(Path("out/checkpoints"))
    found = re.search(r"the loss is nan at step (\d+) .*site 'z'.* is (\S+)$", told.strip())
    assert found, told
    assert found[2] == str(kept)
    assert load(kept)["progress"]["step"] == int(found[1]) - 1 > 0
    weights = load(kept)["weights"]["modules"][0].values()
    assert all(bool(value.isfinite().all()) for value in weights)


# The machine --------------------------------------------------------------------------------------


def full(path: Path, data: bytes) -> None:
    raise explained(OSError(errno.ENOSPC, "No space left on device"), "No space left on device")


def test_a_full_disk_keeps_the_last_checkpoint(folder, capsys, often, monkeypatch):
    write, count = checkpoint.write, 0

    def write_twice(path, data):
        nonlocal count
        count += 1
        (write if count <= 9 else full)(path, data)  # three files each: data, two checkpoints

    monkeypatch.setattr(checkpoint, "write", write_twice)
    assert train(*BASE) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search("cannot write checkpoint .*No space left.*step-000000002 is intact", told)
    assert load(latest(Path("out/checkpoints")))["progress"]["step"] == 2
    assert not list(Path("out/checkpoints").glob(".tmp*"))
    monkeypatch.undo()
    os.chdir(folder)
    assert main(["train", "--resume", "out"]) == 0


def test_a_full_disk_from_the_start_leaves_nothing(folder, capsys):
    before = tree(folder)
    arguments = ["--data", "real.npy", "--batch-size", "8", "--epochs", "1", "--out", "out"]

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        assert main(["train", *arguments]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search("pyro-vae: cannot write checkpoint .*make room", capsys.readouterr().err)
    assert tree(folder) == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(code, untouched, capsys, monkeypatch):
    def refuse(path, *args, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    pattern = f"cannot create the run folder 'out': {os.strerror(code)}; choose another --out"
    refused(capsys, pattern, untouched, "train", *BASE)


OUTS = {
    "run": "'run' exists and is not empty: choose another --out, .*--resume 'run'",
    "real.npy": "'real.npy' is a file, not a folder: choose another --out",
    "real.npy/inside": "real.npy/inside.*choose another --out",
    "dangling": "'dangling' is a link that leads nowhere: choose another --out",
    "n" * 300: "File name too long; choose another --out",
    "nul\0": "NUL character: choose another --out",
}


@pytest.mark.parametrize("out", OUTS, ids=range(len(OUTS)))
def test_an_output_folder_that_is_taken(out, untouched, capsys):
    refused(capsys, OUTS[out], untouched, "train", *BASE, "--out", out)


def test_a_failed_run_leaves_an_empty_folder_empty(folder, capsys):
    Path("out").mkdir()
    refused(capsys, "--batch-size 33", folder, "train", *BASE, "--batch-size", "33")
    refused(
        capsys, "--batch-size 33", folder, "train", *BASE, "--batch-size", "33", "--out", "a/b/c"
    )


def test_two_runs_in_one_folder(folder, capsys):
    (folder / "run" / ".lock").touch()
    child, release = os.pipe()
    ready, locked = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        with lock(folder / "run"):
            os.write(locked, b"!")
            os.read(child, 1)
        os._exit(0)
    os.close(child)
    os.read(ready, 1)
    try:
        assert main(["train", "--resume", "run"]) == 2
        told = capsys.readouterr().err
        assert re.search(f"'run' is in use by process {pid}: wait for it to end", told)
    finally:
        os.close(release)
        os.waitpid(pid, 0)
    assert main(["train", "--resume", "run"]) == 0


MEMORY = {
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB.\nMore lines"),
    "host": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 32000 bytes"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("where", MEMORY)
def test_out_of_memory(where, untouched, capsys, monkeypatch):
    def fail(*args, **options):
        raise MEMORY[where]

    monkeypatch.setattr(runs, "train", fail)
    refused(capsys, "out of memory: lower --batch-size or --latent", untouched, "train", *BASE)


def test_an_error_of_ours_says_so(folder, capsys, monkeypatch):
    monkeypatch.setattr(runs, "resolve_device", lambda device: 1 / 0)
    assert train(*BASE) == 1
    assert "ZeroDivisionError: division by zero (this is a bug" in capsys.readouterr().err
    monkeypatch.setenv("PYRO_VAE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        train(*BASE)


# Checkpoints --------------------------------------------------------------------------------------


def rewritten(path: Path, **changes: bytes) -> None:
    """Give a checkpoint other files, and the manifest that belongs to them."""
    import hashlib

    manifest = json.loads((path / "manifest.json").read_text())
    for name, data in changes.items():
        file = {"tensors": "tensors.safetensors", "state": "state.json"}[name]
        (path / file).write_bytes(data)
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"][file] = entry
    seal(path, manifest)


def seal(path: Path, manifest: dict) -> None:
    manifest["sha256"] = checkpoint._own_hash(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch marker",)


def truncate(path: Path) -> None:
    data = (path / "tensors.safetensors").read_bytes()
    (path / "tensors.safetensors").write_bytes(data[:-7])


def flip(path: Path) -> None:
    data = bytearray((path / "tensors.safetensors").read_bytes())
    data[-5] ^= 4
    (path / "tensors.safetensors").write_bytes(data)


def newer(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    seal(path, {**manifest, "format": 99, "version": "7.0"})


def of_another_model(path: Path) -> None:
    shutil.rmtree(path.parent)
    shutil.copytree(Path("wider/checkpoints"), path.parent)


CHECKPOINTS = {
    "truncated": (truncate, r"damaged: tensors.safetensors has \d+ bytes, expected \d+; "),
    "flipped": (flip, "damaged: tensors.safetensors has the SHA-256 .*, expected .*; "),
    "newer": (newer, "newer pyro_vae .*'7.0', format 99.*upgrade pyro-vae"),
    "of another model": (of_another_model, "does not fit this VAE .*expected.*options of the run"),
    "a pickle": (
        lambda path: (path / "tensors.safetensors").write_bytes(pickle.dumps(Hostile())),
        "damaged: tensors.safetensors has",
    ),
    "a sealed pickle": (
        lambda path: rewritten(path, tensors=pickle.dumps(Hostile())),
        "damaged: tensors.safetensors is malformed",
    ),
    "a huge header": (
        lambda path: rewritten(path, tensors=struct.pack("<Q", 2**62)),
        "damaged: tensors.safetensors is malformed",
    ),
    "nested": (
        lambda path: rewritten(path, state=b"[" * 200_000),
        "damaged: state.json is malformed",
    ),
    "a list": (lambda path: rewritten(path, state=b"[]"), "damaged: state.json is malformed"),
    "gone": (lambda path: shutil.rmtree(path.parent), "has no checkpoint"),
}


@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_trusted(fault, folder, capsys):
    damage, pattern = CHECKPOINTS[fault]
    damage(latest(Path("run/checkpoints")))
    refused(capsys, pattern, folder, "evaluate", "run")
    if fault in ("flipped", "newer", "of another model"):
        before = tree(folder)
        assert main(["train", "--resume", "run"]) == 2
        assert {**tree(folder), "run/.lock": 0} == {**before, "run/.lock": 0}


# Stored configurations ----------------------------------------------------------------------------

ALIASES = [("a", "zero"), *((c, f"{b}, *{b}") for b, c in itertools.pairwise("abcdefghij"))]
PLANTED = "open('marker', 'w').close()\nfrom pyro_vae.components import StandardNormal as X\n"
PRIOR = "prior: {{class_path: {}}}\n"
TRUST = {
    "a function": (PRIOR.format("os.system"), "names 'os.system', .*name that class again"),
    "through us": (PRIOR.format("pyro_vae.cli.os.system"), "names 'pyro_vae.cli.os.system'"),
    "an easter egg": (PRIOR.format("antigravity.x"), "names 'antigravity.x'"),
    "planted": (PRIOR.format("planted.X"), "names 'planted.X'"),
    "planted, not ASCII": (PRIOR.format("plänted.X"), "names 'plänted.X'"),
    "by a flat key": ("prior.class_path: planted.X\n", "names 'planted.X'"),
    "as a string": ("prior: planted.X\n", "names 'planted.X'"),
    "for the network": ("network: {class_path: planted.X}\n", "names 'planted.X'"),
    "for the model": ("model: {class_path: planted.X}\n", "names 'planted.X'"),
    "inside a part": (
        "network: {class_path: pyro_vae.components.MLP, init_args: {activation: planted.X}}\n",
        "names 'planted.X'",
    ),
    "inside a list": ("prior: [planted.X]\n", "names 'planted.X'"),
    "under an innocent key": (
        "prior: {class_path: pyro_vae.components.MLP, init_args: {data: planted.X}}\n",
        "names 'planted.X'",
    ),
    "functions in a file": (
        "model: {class_path: pyro_vae.cli.parts.Functions, init_args: {file: planted.py}}\n",
        "program is in a file of your own: name it again",
    ),
    "functions by a short name": (
        "model: {class_path: Functions, init_args: {file: planted.py}}\n",
        "planted.py",
    ),
    "another file of options": ("model: ./more.yaml\n", "more.yaml"),
    "a nested file of options": ("config: more.yaml\n", "option 'config'"),
    "a class of torch's that loads": (
        "network: {class_path: torch.package.PackageImporter, init_args: {file: planted.py}}\n",
        "names 'torch.package.PackageImporter'",
    ),
    "a tag": ("latent: !!python/object/apply:os.system ['touch marker']\n", r"line \d+: a tag"),
    "brackets": ("latent: " + "[" * 200_000, "nested more than 30 levels"),
    "aliases": ("".join(f"{c}: &{c} [*{b}]\n" for c, b in ALIASES), "YAML aliases"),
    "too many bytes": ("# " + "x" * 2_000_000, r"2,000,\d+ bytes, too many"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRUST)
def test_a_stored_configuration_imports_nothing_untrusted(name, folder, capsys, monkeypatch):
    text, pattern = TRUST[name]
    monkeypatch.syspath_prepend(folder)
    for file in ("planted.py", "plänted.py"):
        Path(file).write_text(PLANTED)
    for more in ("more.yaml", "run/more.yaml"):
        Path(more).write_text("class_path: planted.X\n")
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    replaced = {re.split("[.:]", line)[0] for line in text.splitlines()}
    kept = {key: value for key, value in stored.items() if key not in replaced}
    Path("run/config.yaml").write_text(yaml.safe_dump(kept) + text, encoding="utf-8")
    for command in (
        ["evaluate", "run"],
        ["train", "--resume", "run"],
        ["train", *BASE, "--config", "run/config.yaml"],
    ):
        refused(capsys, pattern, folder, *command)
        assert not Path("marker").exists()


def test_a_file_that_is_named_gives_no_trust_to_another(folder, capsys):
    Path("planted.py").write_text(PLANTED)
    assert train(*BASE, "--model", "no_guide.py:model") == 2
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    stored["prior"] = {"class_path": "planted.X"}
    Path("run/config.yaml").write_text(yaml.safe_dump(stored))
    model = ["--model", "nothing_observed.py:MyVAE"]
    refused(capsys, "names 'planted.X'", folder, "evaluate", "run", *model)
    assert not Path("marker").exists()


def test_the_script_tells_a_fault_on_one_line(tmp_path):
    done = script("train", "--data", "nosuch.npy", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"pyro-vae: nosuch.npy: no such file or folder.*\n", done.stderr)


def test_optimised_python_is_warned_of(tmp_path, monkeypatch, capsys):
    class Optimised:
        optimize = 1

        def __getattr__(self, name):
            return getattr(flags, name)

    flags = sys.flags
    monkeypatch.setattr(sys, "flags", Optimised())
    assert main(["train", "--data", str(tmp_path / "nosuch.npy")]) == 2
    warning, fault = capsys.readouterr().err.splitlines()
    assert "-O turns all checks of values off" in warning
    assert "nosuch.npy: no such file" in fault
