"""The command ``list``: every component by name."""

from __future__ import annotations

import textwrap

from pyro_vae import datasets
from pyro_vae.cli.names import ROLES, by_data, known_as, offered, stated, summary
from pyro_vae.cli.parser import Parser
from pyro_vae.components.automatic import distribution_names

__all__ = ["list_components"]


def list_components(arguments: list[str]) -> None:
    """List every component by name, with one line each."""
    parser = Parser("list", "List every component by name, with one line each.")
    help_ = "show which components combine: posteriors with priors, and objectives with posteriors"
    parser.flag(parser, "--combinations", help_)
    if parser.parse(arguments).combinations:
        from pyro_vae.cli import combinations

        for line in combinations.tables(combinations.small_parts()):
            print(line, flush=True)
        return
    print("data: " + ", ".join(datasets.NAMES) + ", or a .npy or .npz file or a folder of images")
    for option in ROLES:
        if option in ("encoder", "decoder"):
            continue  # networks, too
        print(f"\n--{option}" + (", --encoder, --decoder" if option == "network" else ""))
        kinds = by_data() if option == "likelihood" else {"": offered(option)}
        for kind, found in kinds.items():
            if kind:
                print(f" of {kind}:")
            for name, part in found.items():
                print(f"  {name:<28}{summary(part)}{_also(option, name, part)}")
    print("\nor, as --prior, --likelihood or --posterior, any of Pyro's distributions:")
    print(textwrap.fill(", ".join(distribution_names()), 98, break_on_hyphens=False))
    print("\nor any of your own: an import path (my_package.MyPrior) or file (my_file.py:MyPrior)")


def _also(option: str, name: str, part: type) -> str:
    """Return the other names of a component in this role that its line does not hold."""
    others = [
        other
        for other in stated(part, "synonyms", ())
        if known_as(other, option) == name and other not in summary(part)
    ]
    return f" Also {', '.join(others)}." if others else ""
