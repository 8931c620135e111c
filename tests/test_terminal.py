"""What is printed reaches a person without control sequences, and never ends the work."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import SCRIPT, TINY, environment, write_data
from runs import child

from pyro_vae import VAE, fit
from pyro_vae.cli import main
from pyro_vae.terminal import Terminal, plain, printing

TEXTS = {
    "plain ± text\n\tindented": "plain ± text\n\tindented",
    "\x1b[2J\x1b]0;title\x07": "\\x1b[2J\\x1b]0;title\\x07",
    "a\rb": "a\\rb",
    "\x9b31m": "\\x9b31m",
    "right\u202eleft": "right\\u202eleft",
    "nul\0": "nul\\x00",
}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_control_sequences_are_shown_and_not_sent(text):
    assert plain(text) == TEXTS[text]
    stream = io.StringIO()
    print(text, file=Terminal(stream))
    assert stream.getvalue() == TEXTS[text] + "\n"


def test_a_progress_bar_moves_as_it_did():
    stream = io.StringIO()
    for text in ("\r 3/4 |##  |", "\n\n", "\x1b[A\x1b[A", "\r"):
        Terminal(stream).write(text)
    assert stream.getvalue() == "\r 3/4 |##  |\n\n\x1b[A\x1b[A\r"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_has_no_letters_for_is_written_out(encoding):
    buffer = io.BytesIO()
    stream = Terminal(io.TextIOWrapper(buffer, encoding=encoding))
    print("é ± 雪 \udcff", file=stream, flush=True)
    assert not stream.gone
    assert buffer.getvalue().decode(encoding).endswith("\\udcff\n")


class Broken(io.StringIO):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def isatty(self) -> bool:
        raise self.error


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


GONE = {
    "never there": None,
    "closed": closed(),
    "a reader that has left": Broken(BrokenPipeError()),
    "a terminal that is gone": Broken(OSError(5, "Input/output error")),
    "a full disk": Broken(OSError(28, "No space left on device")),
}


@pytest.mark.parametrize("name", GONE)
def test_a_stream_that_nobody_reads_stops_nothing(name, monkeypatch):
    monkeypatch.setattr(sys, "stderr", GONE[name])
    with printing() as (_, err):
        print("lost", file=sys.stderr)
        assert err.gone
        assert not err.isatty()


@pytest.mark.parametrize("name", GONE)
def test_training_goes_on_without_anybody_to_read_of_it(name, monkeypatch):
    monkeypatch.setattr(sys, "stderr", GONE[name])
    done = fit(VAE.assemble((3,), (2,)), torch.ones(20, 3), epochs=2, progress=True)
    assert done.epochs == 2


def test_names_of_others_are_cleaned_wherever_they_are_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    name = "\x1b[31mreal\x1b]0;owned\x07.npy"
    os.rename("real.npy", name)  # noqa: PTH104
    assert main(["train", *TINY, "--data", name, "--lr", "\x1b[1m"]) == 2
    assert main(["train", *TINY, "--data", name + "x"]) == 2
    assert main(["train", *TINY, "--data", name, "--batch-size", "33", "--out", "\x1b[7mout"]) == 2
    shown = capsys.readouterr()
    assert "\\x1b[31mreal" in shown.err
    assert not {"\x1b", "\x07"} & {*shown.err, *shown.out}


@pytest.mark.pictures
@pytest.mark.slow
def test_every_name_stays_on_its_line(tmp_path, monkeypatch, capsys):
    """Each line that is printed begins as one of ours does, whatever the files are called."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    data, out = "da\nta\t\r.npy", "-o\nut\x1b[1m"
    Path("real.npy").rename(data)
    assert main(["train", *TINY, "--data", data, f"--out={out}"]) == 0
    for command in ("evaluate", "sample", "plot"):
        assert main([command, f"./{out}"]) == 0
    assert main(["compare", *TINY, "--data", data, f"--out={out}2", "--objectives", "ELBO"]) == 0
    assert main(["train", *TINY, "--data", data, f"--out={out}"]) == 2
    shown = capsys.readouterr()
    lines = f"{shown.out}{shown.err}".splitlines()
    assert sum("\\nut" in line for line in lines) > 8
    assert sum("\\nta" in line for line in lines) >= 2
    assert not [line for line in lines if line.startswith(("ta", "ut"))]


def test_a_run_goes_on_when_its_reader_has_left(tmp_path, monkeypatch):
    """As in ``pyro-vae train ... 2>&1 | head -1``, and with stdin closed."""
    write_data(tmp_path)
    read, write = os.pipe()
    os.close(read)

    def training() -> None:
        os.close(0)
        sys.stdout, sys.stderr = (os.fdopen(os.dup2(write, stream), "w") for stream in (1, 2))
        status = main(["train", *TINY, "--data", "real.npy", "--out", "run"])
        sys.stdout.flush()  # as at the end of a process
        sys.stderr.flush()
        os._exit(status)

    monkeypatch.chdir(tmp_path)
    _, status = os.waitpid(child(training), 0)
    os.close(write)
    assert status == 0
    assert (tmp_path / "run" / "results.json").is_file()


def test_closed_streams_are_no_error():
    command = f"exec '{SCRIPT}' --version >&- 2>&- <&-"
    assert subprocess.run(["sh", "-c", command], env=environment(), check=False).returncode == 0
