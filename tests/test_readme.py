"""The README: its code runs, its options exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from command import FUNCTIONS, PROGRAM, shorten_annealing, write_data
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

import pyro_vae
import pyro_vae.evaluation
from pyro_vae import VAE
from pyro_vae.cli import main
from pyro_vae.cli.compare import comparison_parser
from pyro_vae.cli.names import offered
from pyro_vae.cli.options import training_parser
from pyro_vae.components import MLP, Normal

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
INDENTED = re.findall(r"^ {4}(pyro-vae .*)$", re.sub(r"\\\n +", "", TEXT), re.MULTILINE)
INLINE = re.findall(r"`(pyro-vae [^`]+)`", TEXT)
TABLE = re.findall(r"^\|[^|]+\| `(--[^`]+)` ", TEXT, re.MULTILINE)
# What the README's examples are given instead of hours and gigabytes.
SMALL = ["--epochs", "1", "--batch-size", "8", "--latent", "2", "--num-samples", "2"]
QUICK = {
    "5000": "3",
    "20": "3 --num-temperatures 3 --num-chains 2",
    "NeuralSpline": "NeuralSpline --epochs 1 --num-samples 2",
    "10": "2 --repeats 2 --epochs 2",
}


def block(beginning: str) -> str:
    (found,) = [code for code in BLOCKS if beginning in code]
    return found


def test_there_is_something_to_test():
    assert len(BLOCKS) >= 4
    assert len(INDENTED) >= 7
    assert len(TABLE) >= 7


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_is_python(number):
    compile(BLOCKS[number], "README.md", "exec")


def tiny_mnist() -> pyro_vae.datasets.Dataset:
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28)).astype("u1")
    return pyro_vae.datasets.from_arrays(images, name="mnist", levels=255)


def test_the_vae_of_the_readme_trains_and_is_judged(monkeypatch):
    monkeypatch.setattr(pyro_vae.datasets, "load", lambda name: tiny_mnist())
    code = block("fit(vae, data").replace("epochs=30", "epochs=1, batch_size=24")
    names: dict = {}
    exec(code.replace("num_samples=1000", "num_samples=3"), names)
    assert names["log_p"].shape == (6,)
    assert bool(names["log_p"].isfinite().all())


def test_the_class_of_the_readme_is_the_textbooks():
    code = block("class VAE(PyroModule)")
    source = (ROOT / "pyro_vae" / "models" / "vae.py").read_text(encoding="utf-8")
    for line in code.splitlines():
        bare = line.strip()
        if not bare.startswith("def "):
            assert bare in source
    assert re.search(r"def model\(self, x: Tensor\)", source)


def test_the_prior_of_the_readme_is_named_by_file(tmp_path):
    imports = "import pyro.distributions as dist\nfrom pyro_vae.components import Family\n"
    imports += "from pyro_vae.distributions import positive\n"
    write_data(tmp_path)
    (tmp_path / "readme_prior.py").write_text(imports + block("class StudentPrior"))
    prior = ["--prior", f"{tmp_path / 'readme_prior.py'}:StudentPrior"]
    data = ["--data", str(tmp_path / "real.npy"), "--out", str(tmp_path / "run")]
    assert main(["train", *SMALL, *data, *prior]) == 0


def test_an_existing_script_changes_one_import():
    names: dict = {"x": torch.randn(5, 3)}
    exec("import pyro\nfrom pyro.infer import Trace_ELBO\n" + FUNCTIONS, names)
    exec(block("from pyro_vae import SVI"), names)
    assert names["svi"].step(names["x"]) != names["loss"]


def test_texts_are_given_as_they_are():
    texts = [f"the {a} sat." for a in ("cat", "dog", "owl") for _ in range(4)]
    exec(block("text=Reading"), {"datasets": pyro_vae.datasets, "texts": texts})


def test_an_encoder_goes_on_as_a_classifier():
    vae = VAE.assemble((3,), (2,), likelihood=Normal, network=MLP)
    names: dict = {"torch": torch, "vae": vae, "x": torch.randn(12, 3)}
    code = block("Encoder(vae, x)").replace("range(100)", "range(2)")
    names["labels"] = torch.arange(12) % 10
    exec(code, names)
    assert names["classifier"](names["x"]).shape == (12, 10)


# Options ------------------------------------------------------------------------------------------


def test_a_run_is_opened_and_asked(tmp_path, monkeypatch):
    own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--data", "measurements.npy", "--out", "RUN"]) == 0
    names = {"x": np.load("measurements.npy")}
    exec(block('pyro_vae.load("RUN")'), names)
    assert names["z"].shape == (40, 2)
    assert names["scores"].shape == (40,)
    assert names["drawn"].shape == (16, 3)


def test_every_option_exists():
    known = {*training_parser().names, *comparison_parser().names}
    known |= {
        "--num-samples",
        "--all",
        "--num",
        "--mean",
        "--label",
        "--temperature",
        "--nucleus",
    }  # of evaluate and sample
    known |= {"--combinations", "--labels", "--draw"}  # of list, finetune and impute
    known |= {"--ais", "--gaps", "--num-temperatures", "--num-chains", "--num-data"}
    known |= {
        "--scale",
        "--epoch",
        "--rounds",
        "--curves",
        "--share",
        "--processes",
        "--axes",
        "--here",
        "--groups",
        "--programs",
        "--name",
    }  # of the experiments
    mentioned = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", TEXT))
    assert len(mentioned) > 15
    assert mentioned - known == set()


def test_every_command_exists(capsys):
    for command in {shlex.split(line)[1] for line in [*INDENTED, *INLINE]}:
        assert main([command, "--help"]) == 0, command


COMPANIONS = {
    "Laplace": ["--data", "real.npy"],
    "Bernoulli": ["--data", "binary.npz"],
    "Convolutional": ["--data", "bytes.npy"],
    "Binarize": ["--data", "counts.npy", "--likelihood", "Bernoulli"],
}


def together() -> list[list[str]]:
    """Put rows of the table into one command where no two of them are of one option."""
    lines: list[list[str]] = []
    for row in map(str.split, TABLE):
        needed = next((COMPANIONS[word] for word in row if word in COMPANIONS), [])
        roles = {word.partition(".")[0] for word in [*row, *needed] if word.startswith("--")}
        for others in lines:
            if roles.isdisjoint(word.partition(".")[0] for word in others):
                others += [*needed, *row]
                break
        else:
            lines.append([*needed, *row])
    return lines


@pytest.mark.parametrize("options", together(), ids=" ".join)
def test_every_swap_of_the_table_trains(options, tmp_path, monkeypatch):
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--data", "real.npy", *options, "--out", "run"]) == 0


CATS = ("cat", "dog", "owl", "hen", "cow", "fox")


def own_files(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "measurements.npy", rng.normal(size=(40, 3)))
    np.savez(folder / "counts.npz", x=rng.poisson(3.0, (40, 3)))
    words = rng.integers(1, 9, (40, 6)) * (np.arange(6) < rng.integers(1, 7, (40, 1)))
    np.save(folder / "sentences.npy", words)
    texts = [f"the {a} sat on the {b}." for a in CATS for b in CATS]
    (folder / "corpus.txt").write_text("\n".join(texts))
    cells = [f"{n},{text},{n % 5}" for n, text in enumerate(texts)]
    (folder / "reviews.csv").write_text("\n".join(["id,review,stars", *cells]))
    plants = [f"p{n},{n % 7 / 3},{'' if n % 9 == 4 else n % 4},{'ab'[n % 2]}" for n in range(40)]
    (folder / "plants.csv").write_text("\n".join(["id,petal,colour,species", *plants]))
    chains = [f"{'C' * long}{end}" for long in range(1, 13) for end in ("O", "N", "(=O)N")]
    (folder / "molecules.smi").write_text("\n".join(f"{each} name" for each in chains))
    (folder / "docs").mkdir()
    for n in range(40):
        (folder / "docs" / f"{n}.txt").write_text(f"the {['cat', 'dog', 'cow'][n % 3]} is here")
    (folder / "folder_of_images").mkdir()
    for i in range(30):
        pixels = rng.integers(0, 256, (6, 6)).astype("u1")
        Image.fromarray(pixels).save(folder / "folder_of_images" / f"{i}.png")


@pytest.fixture
def fewer_digits(monkeypatch) -> None:
    """A sixth of them."""
    digits = load_digits()
    few = Bunch(images=digits.images[:300], target=digits.target[:300])
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: few)


@pytest.mark.parametrize("line", [line for line in INDENTED if "train" in line])
def test_every_training_command_runs(line, tmp_path, monkeypatch, fewer_digits):
    own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    _, _, *arguments = shlex.split(line, comments=True)
    if "--resume" in arguments:
        assert main(["train", *SMALL, "--data", "measurements.npy", "--out", "RUN"]) == 0
        assert main(["train", *arguments]) == 0
        return
    if "my_" in line:
        # A name of its own, as one process loads a file under one name.
        source, file = (PROGRAM, "class") if "MyVAE" in line else (FUNCTIONS, "pair")
        (tmp_path / f"readme_{file}.py").write_text(source)
        arguments = [word.replace("my_file", f"readme_{file}") for word in arguments]
        if "--data" not in arguments:
            arguments += ["--data", "measurements.npy"]
    of_digits = "--data" not in arguments or "digits" in arguments
    few_steps = ["--batch-size", "100"] if of_digits else []
    assert main(["train", *arguments, *SMALL, *few_steps, "--out", "run"]) == 0


def test_every_judging_command_runs(tmp_path, monkeypatch):
    own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    shorten_annealing(monkeypatch)
    x = np.load("measurements.npy")
    np.savez("labelled.npz", x=x, labels=np.arange(len(x)) % 2)
    assert main(["train", *SMALL, "--data", "labelled.npz", "--out", "RUN"]) == 0
    for line in (line for line in INDENTED if " RUN" in line and "--res" not in line):
        words = " ".join(QUICK.get(word, word) for word in shlex.split(line)[1:])
        assert main(words.split()) == 0, line


# Names and links ----------------------------------------------------------------------------------


def test_every_name_exists():
    for name in re.findall(r"`(\w+)`", TEXT.partition("There are `log_likelihood`")[2])[:9]:
        assert hasattr(pyro_vae.evaluation, name) or name in ("SVI", "fit"), name
    for name in re.findall(r"`((?:Trace|Renyi)\w*_?ELBO)`", TEXT):
        assert name in offered("objective")


def links() -> list[str]:
    return [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]


def test_every_link_leads_to_a_file():
    assert links()
    for link in links():
        assert (ROOT / link.partition("#")[0]).is_file(), link


def test_the_picture_of_results_is_a_picture():
    with Image.open(ROOT / "experiments" / "results" / "mnist.png") as picture:
        assert min(picture.size) > 100
