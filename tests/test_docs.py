"""Prose outlives code: each name of ours in backticks must still be there."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pptp_nat"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "rules" / "README.md"])
FILES = sorted(PACKAGE.rglob("*.py"))
_DOTTED = re.compile(r"`(pptp_nat(?:\.\w+)+)`")
_TEST = re.compile(r"`(test_\w+)`")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
_CLASS = re.compile(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)(?:\.(\w+))?(?:\(\))?`")
_FOREIGN = {"NetfilterQueue"}


@functools.cache
def defined() -> dict[str, set[str]]:
    """Return the classes of the package and the names that each one's body mentions."""
    classes: dict[str, set[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names = classes.setdefault(node.name, set())
                for inner in ast.walk(node):
                    match inner:
                        case ast.FunctionDef(name=name):
                            names.add(name)
                        case ast.Attribute(attr=name):
                            names.add(name)
                        case ast.Name(id=name):
                            names.add(name)
    return classes


def exists(dotted: str) -> bool:
    """Whether a dotted name leads to a file of the package, or to a name inside one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                rest = parts[length:]
                return not rest or re.search(rf"\b{rest[0]}\b", path.read_text()) is not None
    return False


@pytest.mark.parametrize("path", [*PAGES, *FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_dotted_names_lead_somewhere(path: Path) -> None:
    assert [] == [name for name in _DOTTED.findall(path.read_text()) if not exists(name)]


@pytest.mark.parametrize("path", [*PAGES, *FILES], ids=lambda path: str(path.relative_to(ROOT)))
def test_named_classes_and_their_members_exist(path: Path) -> None:
    classes = defined()
    missing = [
        f"{name}.{member}" if member else name
        for name, member in _CLASS.findall(path.read_text())
        if name not in _FOREIGN
        and (name not in classes or (member and member not in classes[name]))
    ]

    assert [] == missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    links = _LINK.findall(path.read_text())

    assert [] == [link for link in links if not (path.parent / link).exists()]


def test_the_tests_that_the_pages_name_exist() -> None:
    """A promise with a test's name beside it is worth no more than that test."""
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)", sources))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    named = {name for path in PAGES for name in _TEST.findall(path.read_text())}

    assert set() == named - there - files
