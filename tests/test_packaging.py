"""The package as a stranger gets it: sdist, wheel from the sdist, an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lorascope.store import Site, create_store

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DATA_FILES = [
    "lorascope/capture/demo.yaml",
    "lorascope/analyses/report/template.html",
    "lorascope/analyses/report/style.css",
    "lorascope/store/FORMAT.md",
]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the repository and return what it printed."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from a copy of the source, and the wheel from that sdist."""
    tmp_path = tmp_path_factory.mktemp("build")
    source = tmp_path / "source"
    rooms = PROJECT["tool"]["setuptools"]["package-dir"].values()
    for name in [*rooms, "tests"]:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"]:
        shutil.copy(ROOT / name, source)
    # Without isolation: an isolated build would download the backend that is here already.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def scripts_path(wheel_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an empty environment; return the folder of its commands.

    The dependencies are lent by this environment through a `.pth` file, which neither costs a
    download nor brings in this environment's own editable installation.
    """
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, with_pip=False)
    bin_path = home / "bin"
    python = bin_path / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", wheel_path, cwd=home)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = Path(run(python, "-c", query, cwd=home).strip())
    (purelib / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin_path


def test_the_sdist_carries_the_tests_and_the_golden_stores(wheel_path: Path) -> None:
    """They are read for ever, by whoever builds from source as well."""
    (sdist,) = wheel_path.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    golden = ROOT / "tests/store/golden"
    wanted = {p.relative_to(ROOT).as_posix() for p in golden.rglob("*.zarr/**/*") if p.is_file()}
    assert len(wanted) > 200
    assert wanted | {"tests/store/test_golden.py", "tests/store/golden/make.py"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_holds_every_subpackage_and_no_tests(wheel_path: Path) -> None:
    names = zipfile.ZipFile(wheel_path).namelist()
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        assert package.replace(".", "/") + "/__init__.py" in names
    assert set(DATA_FILES) <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    top = {name.split("/")[0] for name in names}
    assert top == {"lorascope", f"lorascope-{PROJECT['project']['version']}.dist-info"}
    assert not [name for name in names if "test" in name]


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
def test_a_command_helps_from_another_folder(
    command: str, scripts_path: Path, tmp_path: Path
) -> None:
    assert "Usage" in run(scripts_path / command, "--help", cwd=tmp_path)


def test_the_installed_package_reads_a_store(scripts_path: Path, tmp_path: Path) -> None:
    query = "import lorascope.store as s; print(s.__file__)"
    installed = Path(run(scripts_path / "python", "-c", query, cwd=tmp_path).strip())
    assert installed.is_relative_to(scripts_path.parent), "the wheel answers, not the checkout"
    with create_store(
        tmp_path / "s.zarr", capture="first", sites=[Site("resid_post", [0], 3)]
    ) as writer:
        writer.append("u0", {"resid_post": np.ones((1, 2, 3), np.float32)}, label="calm")
    assert "first" in run(scripts_path / "lorascope", "info", "s.zarr", cwd=tmp_path)
