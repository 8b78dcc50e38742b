"""Help answers at once, and says how to begin."""

import subprocess
import sys
import time
from importlib import metadata

import pytest

from lorascope.cli.lorascope import lorascope

HEAVY = ("torch", "transformers", "peft", "dask", "zarr", "matplotlib", "pandas", "numpy", "rich")
COMMANDS = {"capture-run": "capture_run", "analyze": "analyze", "lorascope": "lorascope"}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def timed(code: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    began = time.perf_counter()
    done = python(code)
    return time.perf_counter() - began, done


@pytest.mark.parametrize("module", COMMANDS.values())
def test_help_is_quick_and_imports_nothing_heavy(module: str):
    code = (
        "import sys\n"
        f"sys.argv = ['{module}', '--help']\n"
        f"from lorascope.cli.{module} import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)\n"
    )
    took, done = min((timed(code) for _ in range(10)), key=lambda pair: pair[0])
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert "Example" in done.stdout
    # Measured 0.08 s; the best of ten, because other tests run beside this one.
    assert took < 0.4


@pytest.mark.parametrize("name", ["info", "ingest", "verify", "repair", "seal", "cp"])
def test_every_subcommand_has_an_example(run, name: str):
    ran = run(lorascope, name, "--help")
    assert ran.code == 0
    assert f"Example:\n    lorascope {name} " in ran.out


@pytest.mark.parametrize(("name", "module"), COMMANDS.items())
def test_version_and_scripts(name: str, module: str):
    scripts = {p.name: p.value for p in metadata.entry_points(group="console_scripts")}
    assert scripts[name] == f"lorascope.cli.{module}:main"
    code = "import sys; sys.argv = ['x', '--version']\n"
    code += f"from lorascope.cli.{module} import main\nmain()"
    assert python(code).stdout.strip() == f"lorascope {metadata.version('lorascope')}"
