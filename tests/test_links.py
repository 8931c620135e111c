"""Nothing is written or deleted through a link, outside a run's folder, or of others in it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import threading
import warnings
from pathlib import Path

import pytest
from command import train, tree, write_data
from quick import some

from pyro_vae.cli import main
from pyro_vae.engine import run_folder
from pyro_vae.engine.metrics import MetricsFile
from pyro_vae.engine.run_folder import held, lock, new_run_folder
from pyro_vae.files import as_word, own_folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("links")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("--data", "real.npy", "--out", "run") == 0
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    path = Path(shutil.copytree(prepared, tmp_path / "here"))
    monkeypatch.chdir(path)
    return path


FILES = ("results.json", "report.html", "config.yaml", "metrics.jsonl", ".lock")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_files_of_others_that_names_of_ours_lead_to_stay_as_they_are(folder, link, capsys):
    contents = {}
    for name in FILES:
        outside = folder / f"precious-{name}"
        ours = folder / "run" / name
        shutil.copy(ours, outside) if ours.exists() else outside.write_text("1")
        contents[outside] = outside.read_bytes()
        ours.unlink(missing_ok=True)
        link(outside, ours)
    assert main(["evaluate", "run", "--num-samples", "2"]) == 0
    assert gone_on_with() == 2
    assert "is a link" in capsys.readouterr().err
    (folder / "run" / ".lock").unlink()
    assert gone_on_with() == 0
    assert "not to the same bits (epochs: 2 then, 3 now)" in capsys.readouterr().err
    for outside, content in contents.items():
        assert outside.read_bytes() == content, outside
    assert len(json.loads((folder / "run" / "results.json").read_text())) > 5


def gone_on_with() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        return main(["train", "--resume", "run", "--epochs", "3"])


@pytest.mark.parametrize("name", ["checkpoints", "pictures", "tensorboard", "replica-0"])
def test_folders_of_others_are_neither_written_nor_deleted(tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").touch()
    (tmp_path / name).symlink_to(outside)
    with pytest.raises(OSError, match=f"{name}' is a link, and nothing is written or deleted"):
        own_folder(tmp_path / name)
    assert [path.name for path in outside.iterdir()] == ["mine"]


def test_checkpoints_of_another_run_are_not_pruned(folder, capsys):
    shutil.copytree("run", "other")
    shutil.rmtree("run/checkpoints")
    Path("run/checkpoints").symlink_to("../other/checkpoints")
    before = tree(folder / "other")
    assert gone_on_with() == 2
    assert "checkpoints' is a link" in capsys.readouterr().err
    assert tree(folder / "other") == before


def test_metrics_are_not_appended_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine\n")
    for link in (os.symlink, os.link):
        link(outside, tmp_path / "metrics.jsonl")
        with pytest.raises(OSError, match=r"cannot write .*metrics.jsonl"):
            MetricsFile(tmp_path / "metrics.jsonl").append({"step": 1})
        (tmp_path / "metrics.jsonl").unlink()
    assert outside.read_text() == "mine\n"


# Two at once --------------------------------------------------------------------------------------


def test_who_is_refused_the_lock_deletes_nothing(tmp_path):
    with new_run_folder(tmp_path / "run") as first:
        for name in ("config.yaml", ".lock"):
            (first / name).touch()
            thread = threading.Thread(target=refused_in, args=(first, told := [], new_run_folder))
            thread.start()
            thread.join()
            assert ("not empty" if name == "config.yaml" else "in use by process") in told[0]
            assert (first / name).exists()
            if name == "config.yaml":
                (first / name).unlink()
        (first / "config.yaml").write_text("the first's")
    assert (first / "config.yaml").read_text() == "the first's"


def test_two_that_start_at_once_leave_one_run(tmp_path):
    """Of many, one enters; the folder holds what that one wrote."""
    entered, release = [], threading.Event()

    def start(number: int) -> None:
        try:
            with new_run_folder(tmp_path / "run") as out:
                entered.append(number)
                (out / "config.yaml").write_text(str(number))
                release.wait(120)
        except ValueError:
            refused.release()

    refused = threading.Semaphore(0)
    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(7):
        assert refused.acquire(timeout=120)
    release.set()
    for thread in threads:
        thread.join()
    assert [(tmp_path / "run" / "config.yaml").read_text()] == [str(n) for n in entered]


@pytest.mark.parametrize("error", [ValueError, OSError, ZeroDivisionError])
def test_a_run_that_fails_takes_away_its_own_and_nothing_else(tmp_path, error):
    def fail(path: Path, *made: str) -> None:
        with new_run_folder(path) as out:
            for name in made:
                (out / name).mkdir(parents=True)
            (out / "config.yaml").touch()
            raise error("failed")

    with pytest.raises(error):
        fail(tmp_path / "a" / "b", "pictures")
    assert not list(tmp_path.iterdir())
    with pytest.raises(error):
        fail(tmp_path / "mine", "notes")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]
    with pytest.raises(error):
        fail(tmp_path / "worth", "checkpoints/step-000000001")
    assert (tmp_path / "worth" / "config.yaml").exists()


def test_a_folder_that_is_held_can_be_entered_by_its_holder_alone(tmp_path):
    with held(tmp_path):
        with lock(tmp_path):
            pass
        thread = threading.Thread(target=refused_in, args=(tmp_path, told := []))
        thread.start()
        thread.join()
    assert "in use by process" in told[0]
    assert not run_folder._held.get()


def refused_in(folder: Path, told: list[str], enter=lock) -> None:
    try:
        with enter(folder):
            pass
    except ValueError as error:
        told.append(str(error))


# Names --------------------------------------------------------------------------------------------

NAMES = {
    "~/new": "home/new",
    "-x": "-x",
    "bytes \udcff": "bytes \udcff",
    "two\nlines": "two\nlines",
    "slash/": "slash",
    "\x1b[31mred": "\x1b[31mred",
    "~nobody-here/x": "~nobody-here/x",
}


@pytest.mark.parametrize("name", some(NAMES, "~/new", "two\nlines"), ids=range(len(NAMES)))
def test_a_folder_of_any_name_is_trained_into_and_gone_on_with(folder, name, monkeypatch, capsys):
    (folder / "home").mkdir()
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert train("--data", "real.npy", f"--out={name}", "--epochs", "1") == 0
    assert (folder / NAMES[name] / "report.html").is_file()
    assert main(["train", f"--resume={name}"]) == 0
    word = name if name.startswith("~/") else shlex.split(as_word(Path(name)))[0]
    assert main(["sample", word]) == 0
    assert "\x1b" not in capsys.readouterr().err


def test_the_home_itself_is_no_run_folder(folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder))
    assert train("--data", "real.npy", "--out", "~") == 2
    assert "exists and is not empty" in capsys.readouterr().err
