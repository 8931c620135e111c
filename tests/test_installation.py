"""The package is found wherever a user's script lies."""

import subprocess
import sys


def test_a_script_beside_the_cloned_folder_finds_the_package(tmp_path):
    # The clone's folder has the package's name, but no __init__.py: Python may take it for a
    # namespace package.
    (tmp_path / "pyro_vae" / "pyro_vae").mkdir(parents=True)
    script = tmp_path / "script.py"
    script.write_text("from importlib.util import find_spec; print(find_spec('pyro_vae').origin)")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("__init__.py")
