"""Who may import whom: the house's walls, checked on the code as it is written."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pptp_nat"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 420  #: lines; a longer file is two

#: What the core may use of the standard library: nothing that waits, reads or writes.
PURE = {
    "__future__", "array", "collections", "dataclasses", "enum", "itertools", "operator", "struct",
    "types", "typing",
}  # fmt: skip

#: The only homes of packages that are not ours.
HOMES = {
    "netfilterqueue": {"linux/nfqueue.py"},
    "pyroute2": {"lab"},
    "prometheus_client": {"scrape/metrics.py"},
    "scapy": {"lab", "analysis"},
    "numpy": {"analysis/arrays.py", "analysis/bulk.py", "analysis/gre_arrays.py"},
}

#: What the core's files may import of the core, each at most those before it.
ORDER = [
    "tuples", "checksum", "packet", "messages", "causes", "states", "stream", "parts", "bindings",
    "refused", "introductions", "index", "talk", "call_bits", "calls", "events", "held",
    "clients", "book", "beginnings", "snapshot", "numbers", "dialogue", "translator",
]  # fmt: skip

#: What stands above those who only read or act: the daemon's parts, its faces, its settings.
ABOVE = {"config", "log", "control", "tables", "router", "state", "scrape", "commands", "cli"}

#: Folders and files of `pptp_nat`, and the parts of it that they must not know.
FORBIDDEN = {
    "core": {"linux", "lab", "daemon", *ABOVE},
    "linux": {"lab", "daemon", *ABOVE},
    "tables": {"linux", "daemon", "config", "control", "lab"},
    "state/record_format.py": {"linux", "daemon", "config", "control", "lab", "log"},
    "state/records.py": {"linux", "daemon", "config", "control", "lab", "log"},
    "state/recorder.py": {"linux", "daemon", "config", "control", "lab"},
    "state/statefile.py": {"linux", "daemon", "config", "control", "lab", "core"},
    "state/store.py": {"linux", "daemon", "config", "control", "lab", "core"},
    "api.py": {"linux", "daemon", "config", "core", "lab"},
    "control/server.py": {"linux", "daemon", "config", "core", "lab"},
    "analysis": {"linux", "lab", "daemon", *ABOVE},
    "doctor": {"lab", "daemon", *ABOVE},
    "service.py": {"core", "linux", "daemon", "config", "control", "lab"},
    "completion.py": {"core", "linux", "daemon", "config", "control", "lab"},
    "scrape/http1.py": {"linux", "daemon", "config", "core", "lab"},
    "scrape/web.py": {"linux", "daemon", "config", "core", "lab"},
    "scrape/metrics.py": {"linux", "daemon", "config", "control", "lab"},
    "scrape/meter.py": {"linux", "daemon", "config", "control", "lab"},
    "scrape/visits.py": {"core", "linux", "router", "daemon", "config", "control", "lab"},
    "router/totals.py": {"daemon", "config", "control", "lab"},
    "lab": {"daemon", "linux", "config", "control"},
}


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out in full"
            yield node.module or ""
            if node.module and node.module.split(".")[0] == "pptp_nat":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_errors_imports_nothing_of_the_package() -> None:
    assert not [name for name in imported(PACKAGE / "errors.py") if name.startswith("pptp_nat")]


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=place)
def test_the_core_imports_only_itself_errors_and_the_pure_standard_library(path: Path) -> None:
    """Whatever waits, reads a clock or draws a number would make the core untestable."""
    for name in imported(path):
        if name.startswith("pptp_nat."):
            assert name.split(".")[1] in ("core", "errors"), name
        else:
            assert name.split(".")[0] in PURE, name


@pytest.mark.parametrize("name", ORDER)
def test_the_core_is_read_from_its_foundations_up(name: str) -> None:
    path = PACKAGE / "core" / f"{name}.py"
    used = {each.split(".")[2] for each in imported(path) if each.startswith("pptp_nat.core.")}

    assert used <= set(ORDER[: ORDER.index(name)])


def test_the_order_names_every_file_of_the_core() -> None:
    assert {path.stem for path in (PACKAGE / "core").glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=place)
def test_each_foreign_package_has_its_home(path: Path) -> None:
    for name in imported(path):
        homes = HOMES.get(name.split(".")[0])
        if homes is not None:
            assert {place(path), place(path).split("/")[0]} & homes, f"{name} in {place(path)}"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_nobody_knows_what_stands_above_him(path: Path) -> None:
    forbidden = FORBIDDEN.get(place(path), FORBIDDEN.get(place(path).split("/")[0], set()))
    known = {name.split(".")[1] for name in imported(path) if name.startswith("pptp_nat.")}

    assert not known & forbidden


def compiled() -> dict[str, set[str]]:
    """Return the modules that `setup.py` compiles, each with its classes that have no base.

    Others are what the compiler leaves to Python: exceptions, enumerations, tuples.
    """
    [hot] = [
        node.value for node in ast.walk(ast.parse((PACKAGE.parent / "setup.py").read_text()))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOT"
    ]
    words = [node.value for node in ast.walk(hot) if isinstance(node, ast.Constant)]
    names = {str(word).removesuffix(".py").removeprefix("pptp_nat/") for word in words}
    files = {path for path in FILES if place(path)[:-3] in names}
    files |= {path for path in (PACKAGE / "linux").glob("*.py") if path.stem in names}
    files |= set((PACKAGE / "core").glob("*.py"))
    return {
        f"pptp_nat.{place(path)[:-3].replace('/', '.')}": {
            node.name for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ClassDef) and not node.bases
        }
        for path in files
    }  # fmt: skip


def test_no_plain_class_inherits_from_a_compiled_one() -> None:
    """Python refuses it when the package is loaded: it would not start where it is compiled."""
    hot = compiled()
    assert "Netlink" in hot["pptp_nat.linux.netlink"]
    wrong = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        if f"pptp_nat.{place(path)[:-3].replace('/', '.')}" in hot:
            continue
        natives = {
            alias.asname or alias.name
            for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
            for alias in node.names if alias.name in hot.get(node.module or "", ())
        }
        wrong += [
            f"{place(path)}: {node.name}" for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and natives & {ast.unparse(b) for b in node.bases}
        ]

    assert [] == wrong


@pytest.mark.parametrize("path", FILES, ids=place)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def test_the_command_line_starts_without_kernel_libraries() -> None:
    """``pptp-nat list`` on a small router must not load what only the daemon needs."""
    script = (
        "import sys; import pptp_nat.cli; import pptp_nat.commands.show;"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not set(HOMES) & set(loaded)


def test_only_the_book_writes_the_state_of_calls_and_connections() -> None:
    """A table that somebody goes round is decoration."""
    writers = set()
    for path in (PACKAGE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr == "state":
                    owner = target.value
                    if not (isinstance(owner, ast.Name) and owner.id == "self"):
                        writers.add(path.name)

    assert writers == {"book.py"}
