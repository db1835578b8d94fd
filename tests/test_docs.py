"""Prose outlives code: each name of ours in backticks must still be there."""

import ast
import functools
import importlib
import inspect
import os
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


# Promises: each with its test, and the data paths that it is tried on.

_ALL = {"conntrack", "bpf", "queue"}
_NAMED = re.compile(r"`(?:(tests/[\w./]+)|(test_\w+))`")
#: (page, promise, what holds it, on which data paths)
PROMISES = [
    (page, *(cell.strip() for cell in line.strip("|").split("|")))
    for page in ("reliability.md", "security.md")
    for table in re.findall(
        r"^\| Promise \| Test \| Data paths \|\n\|---\|---\|---\|\n((?:\|.*\n)+)",
        (ROOT / "docs" / page).read_text(), re.MULTILINE,
    )
    for line in table.splitlines()
]  # fmt: skip


@functools.cache
def where_tests_are() -> dict[str, Path]:
    """Return the file of each test."""
    return {
        name: path
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def runs_on(path: Path, name: str) -> set[str]:
    """Return the data paths on which a test with whole peers makes its router."""
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    test = getattr(importlib.import_module(dotted), name)
    for mark in getattr(test, "pytestmark", []):
        names = mark.args[0] if mark.args else ()
        names = [each.strip() for each in names.split(",")] if isinstance(names, str) else names
        if mark.name == "parametrize" and "by" in names:
            rows = [getattr(row, "values", row) for row in mark.args[1]]
            return {row if isinstance(row, str) else row[list(names).index("by")] for row in rows}
    return set(re.findall(r'\bworld\(\s*"(\w+)"', inspect.getsource(test)))


def test_the_tables_of_promises_are_read() -> None:
    """A table of another form would not be looked at."""
    assert {"reliability.md", "security.md"} == {page for page, *_ in PROMISES}
    for page in ("reliability.md", "security.md"):
        text = (ROOT / "docs" / page).read_text()
        assert text.count("| Promise |") == text.count("| Promise | Test | Data paths |")


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[1][:60])
def test_each_promise_is_held_by_tests_on_the_data_paths_that_it_names(
    row: tuple[str, ...]
) -> None:
    _, promise, tests, paths = row
    named = _NAMED.findall(tests)
    assert named, promise
    assert all((ROOT / file).exists() for file, _ in named if file)
    there = where_tests_are()
    assert [] == [name for _, name in named if name and name not in there]
    files = [path for file, _ in named if file for path in [ROOT / file] if path.suffix == ".py"]
    every = [(there[name], name) for _, name in named if name]
    every += [(path, name) for path in files for name, at in there.items() if at == path]
    tried = set().union(*(runs_on(*each) for each in every if each[0].parent.name == "peers"))
    if not tried or os.environ.get("PPTP_NAT_FAULTS"):
        assert paths, promise
        return
    said = _ALL if paths.startswith("all") else set(re.findall(r"`(\w+)`", paths))

    assert said == tried
