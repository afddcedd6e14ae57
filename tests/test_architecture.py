"""House rules that import-linter can't say (it holds the layers; see pyproject.toml)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = sorted(p for top in ("recsys", "deployments", "jobs") for p in (ROOT / top).rglob("*.py"))
EVERY_MODULE = pytest.mark.parametrize("path", CODE, ids=[str(p.relative_to(ROOT)) for p in CODE])

HEAVY = ("ray", "torch", "faiss", "xgboost", "mlflow", "pandas", "scipy", "matplotlib", "deltalake")
COMPUTES = ("models", "index", "features", "experiments", "pipeline")
NOT_FOR_COMPUTING = {"fastapi", "mlflow", "deltalake", "typer", "rich"}


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of all packages that a module imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@EVERY_MODULE
def test_module_follows_the_house_rules(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    place = path.relative_to(ROOT)
    docstring = ast.get_docstring(tree) or ""

    assert text.count("\n") <= 300, f"{place} has more than 300 lines: split it by what it decides"
    words = {"utils", "common", "helpers", "manager"} & set(path.stem.split("_"))
    assert not words, f"{place}: name the module after what it does"
    assert docstring or (path.name == "__init__.py" and not text.strip()), f"{place} has no docstring"
    assert (path.parent / "__init__.py").exists(), (
        f"{place.parent} has no __init__.py: import-linter skips it"
    )

    packages = imported(tree)
    if place.parts[0] == "recsys":
        first_line = docstring.partition("\n")[0].lower()
        assert "ray" not in packages or "imports ray" in first_line, (
            f"{place} imports ray: say so in the docstring's first line, or don't"
        )
        if place.parts[1] in COMPUTES:
            assert not packages & NOT_FOR_COMPUTING, f"{place} computes, so it does no serving or storing"


@EVERY_MODULE
def test_nothing_happens_at_import(path: Path) -> None:
    """Module level holds definitions: no loops over work, no calls whose result nobody keeps."""
    allowed_calls = {"warnings.filterwarnings", "app.add_typer", "app.command"}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = ast.unparse(node.value.func).removesuffix("()")
            assert call.split("(")[0] in allowed_calls or call.split(".")[-1] == "add_typer", (
                f"{path.relative_to(ROOT)}:{node.lineno} calls {call} at import"
            )
        assert not isinstance(node, ast.For | ast.While | ast.With), (
            f"{path.relative_to(ROOT)}:{node.lineno} does work at import"
        )


def test_the_command_line_starts_light() -> None:
    """`recsys --help` must not wait seconds for libraries that the command won't use."""
    code = f"import sys, recsys.cli; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_rules_are_checked_on_all_code() -> None:
    assert len(CODE) > 3
