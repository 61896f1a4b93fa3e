"""The house keeps its rules: imports go one way, Ray lives in one folder, the light commands stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ray_profile
from ray_profile.cli import app
from ray_profile.schema import KIND_WEIGHT, KINDS, REASONS

PACKAGE = Path(ray_profile.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Each layer may import itself and what stands before it.
LAYERS = (
    ("schema", "state", "frozen", "remote", "train_config", "serve_config", "config", "errors"),
    ("sources", "encode", "store"),
    ("profile",),
    ("train", "apply", "serve"),
    ("pipelines",),
    ("printing", "printing_training", "progress", "cli", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

#: Printing is what pipelines/demo.py is for; these know nothing of pipelines but a type.
ALLOWED = {("pipelines", "printing"), ("pipelines", "progress")}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        assert not imports(path), "importing the package must import nothing"
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ray_profile" and len(parts) > 1 and parts[1] in LEVEL and (here, parts[1]) not in ALLOWED:
            assert LEVEL[parts[1]] <= LEVEL[here], f"{here} imports {name}"
        if parts[0] == "ray":
            assert here == "pipelines", f"{path} imports ray"
        if parts[0] == "torch":
            assert here in ("encode", "train", "pipelines"), f"{path} imports torch"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_are_small_and_named_for_what_lives_there(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "manager", "common", "base"}
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize(
    "module", ["ray_profile", "ray_profile.cli", "ray_profile.config", "ray_profile.pipelines.run"]
)
def test_light_modules_import_neither_torch_nor_ray(module: str) -> None:
    script = (
        f"import sys, {module}; print([m for m in ('torch', 'ray', 'sklearn', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_kind_has_a_weight_and_every_reason_in_the_code_a_sentence() -> None:
    assert set(KIND_WEIGHT) == set(KINDS)
    check = (PACKAGE / "sources" / "check.py").read_text() + (PACKAGE / "sources" / "ingest.py").read_text()
    named = set(re.findall(r'"([a-z]+_[a-z]+)"', check)) & set(REASONS)
    assert len(named) > 5


def test_the_commands_are_those_that_are_documented() -> None:
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == {"init", "build", "show", "status", "compact", "demo", "train", "tune", "index", "serve", "submit"}
    readme = (ROOT / "README.md").read_text()
    for name in names:
        assert f"ray-profile {name}" in readme, f"README does not mention {name}"


def test_ci_runs_what_readme_says() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()
