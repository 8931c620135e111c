"""The command ``compare``, end to end at a tiny size, and what it says to mistakes."""

from __future__ import annotations

import json

import pytest
from command import PROGRAM, tree, write_data

from pyro_vae.cli import compare as command
from pyro_vae.cli import main
from pyro_vae.cli.components import built as built_of
from pyro_vae.engine.run_folder import create_run_folder
from pyro_vae.inference import ELBO, IWAE, NVIL, DReG, Renyi

TINY = [
    "--epochs", "1", "--warm-up-epochs", "1", "--batch-size", "8", "--latent", "2",
    "--num-samples", "2", "--num-rows", "4", "--num-repeats", "20", "--network.hidden", "[8]",
    "--device", "cpu", "--engine", "eager",
]  # fmt: skip
PICTURES = ("comparison.png", "rate_distortion.png")
FILES = {"comparison.json", *PICTURES, "config.yaml", "report.html"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    (path / "compared_program.py").write_text(PROGRAM)
    (path / "bounds.py").write_text(
        "from pyro_vae.inference import ELBO\n\nclass MyBound(ELBO):\n    pass\n"
    )
    return path


def compare(*arguments) -> int:
    return main(["compare", *TINY, *map(str, arguments)])


def names(out) -> list[str]:
    record = json.loads((out / "comparison.json").read_text())
    return [row["objective"] for row in record["rows"]]


def test_a_comparison_from_data_to_report(folder, tmp_path, capsys):
    """Its configuration makes it again."""
    out = tmp_path / "new" / "out"
    given = ["--data", folder / "binary.npz", "--seed", 3, "--objectives", "ELBO,IWAE(3),DisARM"]
    status = compare(*given, "--out", out)
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert set(tree(out)) == FILES | {".lock"}
    record = json.loads((out / "comparison.json").read_text())
    elbo, iwae, disarm = record["rows"]
    assert elbo["guide"]["snr"]["standard_error"] > 0
    assert iwae["objective"] == "IWAE(num_particles=3)"
    assert iwae["at_equal_steps"]["log_p_nats"]["value"] < 0
    assert "DisARM takes a Bernoulli latent" in disarm["failure"]
    assert "IWAE(num_particles=3)" in shown.out
    assert "Not trained:" in shown.out
    for name in PICTURES:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert "DisARM takes a Bernoulli latent" in (out / "report.html").read_text()
    again = tmp_path / "again"
    assert main(["compare", "--config", str(out / "config.yaml"), "--out", str(again)]) == 0
    for one, two in zip(
        record["rows"], json.loads((again / "comparison.json").read_text())["rows"], strict=True
    ):
        for part in ("objective", "model", "guide", "bound_nats", "model_from_log_p"):
            assert one[part] == two[part]


def test_files_appear_together_and_a_folder_that_was_left_half_made_is_taken_again(tmp_path):
    place = command._put_in_place_together(tmp_path)
    (place.__enter__() / "config.yaml").touch()
    assert place.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None) is False
    assert tree(tmp_path) == {}
    dead = tmp_path / ".tmp-comparison-999999999"  # of a process that was killed
    dead.mkdir()
    (dead / "config.yaml").touch()
    create_run_folder(tmp_path)
    with command._put_in_place_together(tmp_path) as place:
        for name in FILES:
            (place / name).touch()
        assert not set(tree(tmp_path)) & FILES
    assert set(tree(tmp_path)) == FILES


def test_a_program_and_an_objective_of_ones_own(folder, tmp_path):
    status = main(
        ["compare", *[w for w in TINY if w not in ("--network.hidden", "[8]")], "--data",
         str(folder / "real.npy"), "--model", f"{folder}/compared_program.py:MyVAE",
         "--out", str(tmp_path / "o"), "--objectives",
         f"{folder}/bounds.py:MyBound(num_particles=2)"]
    )  # fmt: skip
    assert status == 0
    assert names(tmp_path / "o") == ["MyBound(num_particles=2)"]


# ---------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "words",
    [
        ["ELBO", "IWAE(num_particles=16)", "DReG(16, alpha=0.5)"],
        ["ELBO,IWAE(16),DReG(16, alpha=0.5)"],
        ["ELBO, IWAE(16), DReG(16,alpha=0.5)"],
        ["[ELBO, {class_path: IWAE, init_args: {num_particles: 16}}, DReG(16, alpha=0.5)]"],
        ["ELBO()", "{class_path: pyro_vae.inference.IWAE, init_args: {num_particles: 16}}",
         "DReG(alpha=0.5, num_particles=16)"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("joined", [False, True])
def test_objectives_are_written_in_many_ways(words, joined):
    given = [f"--objectives={' '.join(words)}"] if joined else ["--objectives", *words]
    found = built(*given, "--epochs", "3")
    assert [type(objective) for objective in found] == [ELBO, IWAE, DReG]
    assert [objective.num_particles for objective in found] == [1, 16, 16]
    assert found[2].alpha == 0.5


def built(*arguments):
    config = command.comparison_parser().parse(arguments)
    return [built_of("--objectives", ELBO, each) for each in config.objectives]


def test_the_default_objectives_are_told_in_the_help(capsys):
    assert main(["compare", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "ELBO AnalyticELBO IWAE(8) DReG(8) Renyi(0.5,8) RWS(8)" in " ".join(shown.split())
    assert [type(objective).__name__ for objective in built()][:2] == ["ELBO", "AnalyticELBO"]
    assert max(map(len, shown.splitlines())) <= 120


def test_arguments_are_those_of_pyros_bases_too():
    (trace, renyi, nvil) = built(
        "--objectives", "Trace_ELBO(num_particles=3)", "Renyi(alpha=-1)", "NVIL(decay=0.5)"
    )
    assert trace.num_particles == 3
    assert isinstance(renyi, Renyi)
    assert isinstance(nvil, NVIL)
    assert nvil.baseline.decay == 0.5


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--objectives"], "--objectives: the list is empty; name at least one"),
        (["--objectives", "[]"], "--objectives: the list is empty"),
        (
            ["--objectives", "ELBO", "IWEA"],
            "IWEA: no such objective (did you mean IWAE?)",
        ),
        (["--objectives", "IWAE(num_particles=0)"], "num_particles=0: at least one sample"),
        (["--objectives", "IWAE(particles=3)"], "no argument 'particles'; did you mean num_part"),
        (["--objectives", "IWAE(1, 2, 3)"], "too many arguments; it takes num_particles"),
        (["--objectives", "IWAE(many)"], "num_particles many: expected a whole number"),
        (["--objectives", "IWAE(num_particles=16"], "expected a name, or one with its arguments"),
        (["--objectives", "IWAE('a')"], "expected a whole number"),
        (["--objectives", "Renyi(1)"], "alpha=1: that Renyi bound is the ELBO; use ELBO"),
        (["--objectives", "{class_path: 3}"], "a dictionary like {class_path: NAME"),
        (["--objectives", "ELBO", "ELBO"], "objectives has ELBO twice"),
        (["--objectives", "torch.nn.Linear"], "not a class derived from"),
        (["--objectives", "DisARM"], "no objective can train this program; DisARM"),
        (["--epochs", "0"], "--epochs 0: at least 1"),
        (["--num-repeats", "3"], "--num-repeats 3: give 20 or more"),
        (["--num-rows", "0"], "--num-rows 0: give 1 or more"),
        (["--warm-up-epochs", "-1"], "--warm-up-epochs -1: give 0 or more"),
        (["--lr", "0"], "--lr 0.0: give a number above 0"),
        (["--engine", "warp"], "--engine warp: choose from"),
        (
            ["--objective", "ELBO"],
            "--objective: there is no such option; did you mean --obj",
        ),
        (["--data", "nothing.npy"], "nothing.npy"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, said, folder, tmp_path, capsys):
    out = tmp_path / "out"
    base = ["--data", folder / "binary.npz", "--out", out]
    assert compare(*base, *arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    told = [line for line in told if not line.startswith("comparing ")]
    assert len(told) == 1
    assert said in told[0]
    assert not out.exists()


def test_a_strangers_configuration_imports_nothing(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("objectives:\n- class_path: antigravity.Bound\n")
    assert main(["compare", "--config", str(path)]) == 2
    assert "antigravity.Bound" in capsys.readouterr().err


def test_a_folder_that_is_in_use_is_refused_before_anything_is_computed(folder, tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    assert compare("--data", folder / "binary.npz", "--out", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
    assert set(tree(tmp_path)) == {"kept"}


def test_grey_data_under_a_bernoulli_are_refused(folder, tmp_path, capsys):
    status = compare("--data", folder / "grey.npy", "--likelihood", "Bernoulli",
                     "--observation", "AsFloat", "--out", tmp_path / "o")  # fmt: skip
    assert status == 2
    assert "Bernoulli" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
