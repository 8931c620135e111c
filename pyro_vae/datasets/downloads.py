"""Downloads by torchvision: over https alone, into a folder of their own, then moved whole."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyro_vae.files import is_alive, reason, remove
from pyro_vae.wording import option

__all__ = ["download"]

_LEFTOVER = re.compile(r"\.download-(?:([0-9]{1,10})-)?.*")


def download(
    name: str, root: Path, files: list[Path], wanted: str, fetch: Callable[[Any, str], Any]
) -> None:
    """Let torchvision download into a temporary folder, then move `files` to `root`, whole.

    What processes that have ended left of their downloads is swept away first.

    Args:
        name: of the data set.
        root: where `files` belong; made where it is missing.
        files: their paths below it.
        wanted: what to place where by hand, for the message.
        fetch: downloads, given `torchvision.datasets` and a folder.

    Raises:
        FileNotFoundError: it failed; nothing is left behind.
    """
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    timeout = socket.getdefaulttimeout()
    try:
        from torchvision import datasets as torchvision_datasets

        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        with (
            tempfile.TemporaryDirectory(dir=root, prefix=f".download-{os.getpid()}-") as temporary,
            contextlib.redirect_stdout(sys.stderr),
            _over_https(),
        ):
            socket.setdefaulttimeout(30.0)  # torchvision sets none, and would wait for ever
            fetch(torchvision_datasets, temporary)
            for file in files:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (Path(temporary) / file).replace(root / file)
    except Exception as error:  # torchvision, urllib, ssl, zipfile and tarfile: dozens of kinds
        raise FileNotFoundError(
            f"{name} is not in {root} and cannot be downloaded ({reason(error)}): "
            f"place {wanted}, or pass {option('data_root', python='root')} with the folder that "
            "holds it"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
        for folder in created:
            with contextlib.suppress(OSError):  # not empty: the download succeeded
                folder.rmdir()


def _sweep(root: Path) -> None:
    """Remove what downloads of processes that have ended left behind."""
    for path in root.iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        if match and not path.is_symlink() and not (match[1] and is_alive(int(match[1]))):
            remove(path)


class _Https(urllib.request.BaseHandler):
    """Asks for every address over https, also where torchvision or a redirection names http."""

    handler_order = 0

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        # Amazon's addresses of web sites answer over http alone, those of the same files do not.
        address = request.full_url.replace(".s3-website.", ".s3.", 1)
        request.full_url = "https:" + address.removeprefix("http:")
        return request


@contextlib.contextmanager
def _over_https() -> Iterator[None]:
    """Let nothing be asked over plain http, to which torchvision turns where https fails."""
    before = urllib.request._opener  # type: ignore[attr-defined]
    urllib.request.install_opener(urllib.request.build_opener(_Https))
    try:
        yield
    finally:
        urllib.request._opener = before  # type: ignore[attr-defined]
