"""The product installed from its wheel, outside the repository: complete, and the whole stack runs from it.

The wheel is built from the source archive, as `make dist` builds it. It is installed without its dependencies, into an
environment that sees those of the tests: what an index has today is not what is tested here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from nigredo.testing import free_port_base

pytestmark = pytest.mark.embedded

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "nigredo", "ingest", "processors", "sinks")
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
DEADLINE_S = 300


def run(*command: str | Path, folder: Path) -> str:
    own = ("PYTHON", "NIGREDO_HOME")
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith(own)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-c", BUILD_SDIST, folder, folder=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    pip_wheel = ("-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index")
    run(sys.executable, *pip_wheel, "--wheel-dir", folder, archive, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an environment's programs with the wheel in it."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A .pth file in a folder that is added so is not read: the editable install is not seen.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    python = folder / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    run(sys.executable, *install, wheel, folder=folder)
    return folder / "bin"


def tracked(*arguments: str) -> Sequence[str]:
    return run("git", "ls-files", *arguments, "--", *PACKAGES, folder=ROOT).splitlines()


def test_a_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: which files belong to the packages is not known")
    files = {file for file in [*tracked(), *tracked("--others", "--exclude-standard")] if (ROOT / file).exists()}

    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert held == files


def test_in_an_empty_folder_one_command_starts_everything_and_delivers_a_sample_lead(
    programs: Path, tmp_path: Path
) -> None:
    nigredo = programs / "nigredo"
    try:
        started = run(nigredo, "up", "--sample", "--detach", "--port-base", str(free_port_base()), folder=tmp_path)

        assert "answered 200" in started
        assert str(tmp_path / ".nigredo") in started
        assert "webhook-sender  ready" in run(nigredo, "status", folder=tmp_path)
    finally:
        run(nigredo, "down", folder=tmp_path)
    imported = run(programs / "python", "-c", "import nigredo; print(nigredo.__path__[0])", folder=tmp_path)
    assert Path(imported.strip()).is_relative_to(programs.parent)
    assert [entry.name for entry in tmp_path.iterdir()] == [".nigredo"]


def test_the_command_tells_the_version_and_without_arguments_what_to_type_first(programs: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    assert run(programs / "nigredo", "--version", folder=tmp_path) == f"nigredo {version}\n"
    assert "nigredo up --sample" in run(programs / "nigredo", "--help", folder=tmp_path)
