"""What holds for the whole package: light to import, documented, typed, in readable pieces."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from types import FunctionType

import pytest

import eenet

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "eenet").rglob("*.py"))
HEAVY = ("matplotlib", "numpy", "PIL", "scipy", "sklearn", "torch", "torchvision", "typer")
PACKAGES = ["eenet"] + [
    f"eenet.{path.parent.name}"
    for path in sorted((ROOT / "src" / "eenet").glob("*/__init__.py"))
    if "__all__" in path.read_text(encoding="utf-8")
]
METHODS = (FunctionType, classmethod, staticmethod, property, cached_property)
WITHOUT_TORCH = ("tables", "policies", "schedulers", "evaluation", "report", "plot", "running", "serving", "cli")


def modules_after(code: str) -> list[str]:
    """Return which heavy modules stand in a fresh process after some code."""
    code = f"import sys; {code}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return shown.stdout.split()


def test_importing_loads_nothing_heavy() -> None:
    assert modules_after("import eenet") == []


def test_tables_policies_and_exports_load_no_torch() -> None:
    packages = ", ".join(f"eenet.{name}" for name in WITHOUT_TORCH)
    names = "AdaptiveModel, AdaptivePipeline, CostTable, ExitTable, StoppingScheduler, advise, certify, compare"
    assert "torch" not in modules_after(f"import {packages}; from eenet import {names}")


def test_public_names_that_need_torch_name_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None  # as if it were not there\nimport eenet\n"
        "for name in ('attach', 'fit_exits', 'EagerEngine', 'Bundle', 'export'):\n"
        "    try: getattr(eenet, name)\n"
        "    except eenet.EenetError as error: print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0] == 'torch is not installed: attach needs it. Run pip install "eenet[torch]".'
    assert len(shown) == 5


def test_the_version_is_the_installed_one_and_has_a_place_in_the_changelog() -> None:
    from importlib.metadata import version

    assert version("eenet") == eenet.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{eenet.__version__}]" in changelog or "## [Unreleased]" in changelog


def test_types_are_shipped() -> None:
    assert (Path(eenet.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", [name for name in eenet.__all__ if name != "__version__"])
def test_every_public_name_is_explained_and_stands_in_the_api_pages(name: str) -> None:
    value = getattr(eenet, name)
    assert inspect.getdoc(value)
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    assert value.__module__ in re.findall(r"automodule:: (\S+)", pages)
    assert name in importlib.import_module(value.__module__).__dict__


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_function_and_method_is_described(package: str) -> None:
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    public = {name: value for name, value in public.items() if inspect.isclass(value) or inspect.isfunction(value)}
    undescribed = [name for name, value in public.items() if not inspect.getdoc(value)]
    for name, owner in public.items():
        members = vars(owner) if inspect.isclass(owner) else {}
        undescribed += [
            f"{name}.{member}"
            for member, value in members.items()
            if isinstance(value, METHODS) and not member.startswith("_") and not _described(owner, member)
        ]
    assert undescribed == []


def _described(owner: type, member: str) -> bool:
    """Whether a class or one of its bases says what a member is, in a docstring or in a list of attributes."""
    bases = [base for base in owner.__mro__ if member in vars(base) or f"    {member}: " in (base.__doc__ or "")]
    return any(inspect.getdoc(vars(base).get(member)) or member not in vars(base) for base in bases)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    code_lines = {
        f"{node.name} (line {node.lineno})": _code_lines(node, text)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: count for name, count in code_lines.items() if count > 40} == {}


def _code_lines(node: ast.FunctionDef, text: str) -> int:
    """Lines of a function's body without its signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if not body:
        return 0
    lines = text.splitlines()[body[0].lineno - 1 : node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)
