"""The architecture: who may import whom, checked on the syntax trees of all modules."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {  # room: first-party rooms and third-party packages that it must not import
    "store": {"capture", "analyses", "cli", "torch", "transformers", "peft", "accelerate"},
    "capture": {"analyses", "cli", "zarr"},
    "analyses": {"capture", "cli", "zarr", "torch", "transformers", "peft", "accelerate"},
    "cli": {"zarr", "torch", "transformers", "peft", "accelerate"},
}
MODULES = sorted(p for room in FORBIDDEN for p in (ROOT / room).rglob("*.py"))


def imported(node: ast.Import | ast.ImportFrom, path: Path) -> set[str]:
    """Return the room names and top-level packages that one import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif node.level:
        package = path.relative_to(ROOT).parent.parts  # a package's __init__ counts as inside it
        base = package[: len(package) - node.level + 1]
        names = [".".join([*base, *(node.module or alias.name).split(".")]) for alias in node.names]
    else:
        names = [node.module or ""]
    return {name.removeprefix("lorascope.").split(".")[0] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_keeps_to_its_room(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "every module says why it exists"
    top = [*tree.body]
    for block in (n for n in tree.body if isinstance(n, ast.If)):  # `if TYPE_CHECKING:`
        top += block.body if ast.unparse(block.test) == "TYPE_CHECKING" else []
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)):
        names = imported(node, path)
        assert not names & FORBIDDEN[room], f"line {node.lineno}: {room} must not import this"
        if "matplotlib" in names:
            assert "report" in path.parts, f"line {node.lineno}: only analyses/report draws"
        if names & set(FORBIDDEN) and room != "cli":  # cli imports late, so that help stays fast
            assert node in top, f"line {node.lineno}: first-party import not at the top"
        assert room == "cli" or "lorascope" not in names, "rooms import each other relatively"


def test_no_subpackage_is_missing_from_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(["lorascope", *p.parent.relative_to(ROOT).parts]) for p in MODULES}
    assert set(listed) == found


def test_store_and_analyses_work_without_torch(tmp_path: Path) -> None:
    script = tmp_path / "no_torch.py"
    script.write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'peft', 'accelerate'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import numpy as np\n"
        "from lorascope.analyses import analyze\n"
        "from lorascope.store import Site, create_store, open_store\n"
        "x = np.random.default_rng(0).normal(size=(12, 2, 5, 4)).astype('float32')\n"
        "with create_store('s.zarr', capture='a', sites=[Site('resid_post', [0, 1], 4)]) as w:\n"
        "    for i, rows in enumerate(x):\n"
        "        w.append(f'u{i}', {'resid_post': rows}, label='ab'[i % 2])\n"
        "print(sorted(analyze(open_store('s.zarr'), ['svd'])))\n"
    )
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "svd" in run.stdout
