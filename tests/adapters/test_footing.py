"""Which data path a daemon stands on, and what it says of those that it does not."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from pptp_nat.errors import PptpNatError
from pptp_nat.linux.bpf_path import BpfPath
from pptp_nat.router import footing
from pptp_nat.router.programs import Devices


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give what says which data paths work: those that are named have a flaw."""

    def set_up(**flaws: str) -> None:
        monkeypatch.setattr(footing, "PROBES", {
            name: functools.partial(flaws.get, name) for name in ("conntrack", "bpf", "queue")
        })  # fmt: skip

    return set_up


def test_conntrack_comes_first(probes: Callable[..., None]) -> None:
    """It asks nothing of the firewall, and needs no program of ours in the kernel."""
    probes()
    assert ("conntrack", "its probe succeeded") == footing.working_path("auto")
    probes(bpf="no libbpf")
    assert ("conntrack", "its probe succeeded") == footing.working_path("auto")


def test_without_keys_in_conntrack_programs_carry(probes: Callable[..., None]) -> None:
    probes(conntrack="no keys")
    assert ("bpf", "conntrack does not work here: no keys") == footing.working_path("auto")


def test_the_queue_is_what_is_left(probes: Callable[..., None]) -> None:
    """And says of both others why not."""
    probes(conntrack="no keys", bpf="no libbpf")
    name, reason = footing.working_path("auto")

    assert "queue" == name
    assert "conntrack does not work here: no keys; bpf does not work here: no libbpf" == reason


@pytest.mark.parametrize("name", ["conntrack", "bpf"])
def test_one_that_is_asked_for_and_does_not_work_is_one_clear_line(
    probes: Callable[..., None], name: str
) -> None:
    probes(**{name: "it is not here"})
    with pytest.raises(PptpNatError, match=f'"{name}" does not work here: it is not here; use'):
        footing.working_path(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["conntrack", "bpf", "queue"])
def test_one_that_is_asked_for_is_taken(probes: Callable[..., None], name: str) -> None:
    probes()
    assert (name, "configured") == footing.working_path(name)  # type: ignore[arg-type]


def test_without_libbpf_the_probe_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pptp_nat.linux.bpf_object.LIBRARY", "libbpf.so.none")
    complaint = BpfPath.probe()

    assert complaint is not None
    assert "install libbpf (Debian: libbpf1)" in complaint
    assert "\n" not in complaint


class _Path:
    """Stands in for a `BpfPath` whose devices come and go."""

    def __init__(self) -> None:
        self.unserved: dict[str, str] = {}
        self.late: dict[str, str] = {}
        self.by_stack = ""

    def fileno(self) -> int:
        return 0

    def on_devices(self) -> None:
        pass


def test_a_device_that_cannot_run_the_programs_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And again if it comes back after it was gone."""
    told: list[str] = []
    monkeypatch.setattr(
        "pptp_nat.router.programs.log.event",
        lambda _log, _level, name, **about: told.append(
            f"{name} {about.get('device') or about['effect']}"
        ),
    )
    path = _Path()
    devices = Devices(path)  # type: ignore[arg-type]
    assert devices.next_timer() is None
    path.unserved = {"ib0": "its link header is not known"}
    assert devices.next_timer() is not None
    devices.tick(0.0)
    devices.look(0)
    assert ["device-unserved ib0"] == told
    path.unserved = {}
    devices.look(0)
    path.unserved = {"ib0": "its link header is not known"}
    devices.look(0)
    assert ["device-unserved ib0"] * 2 == told
    path.late = {"wan": "its driver runs no XDP programs"}
    assert devices.next_timer() is not None
    devices.tick(0.0)
    devices.look(0)
    assert ["device-unserved ib0", "device-late wan"] == told[1:]
    assert devices.next_timer() is None
    path.by_stack = "a rule of routing asks for packet marks"
    assert devices.next_timer() is not None
    devices.tick(0.0)
    devices.look(0)
    assert ["gre-forwarding GRE of calls goes through the stack"] == told[3:]
    path.by_stack = ""
    devices.look(0)
    assert "gre-forwarding GRE of calls goes past the stack where it can" == told[4]
