"""GRE: carried where a call says so, from when it says so, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pptp_nat.core.packet import EnhancedGre, enhanced_gre, is_enhanced_gre, pack_enhanced_gre
from pptp_nat.errors import WireError
from pptp_nat.linux.datapath import LegOrder
from pptp_nat.linux.queue_path import QueuePath
from tests.core.wire import ip_packet

from .ladder import ALICE, BOB, OTHER_PAC, PAC, ROUTER, Gre, Ladder


def test_gre_of_no_call_reaches_nobody(nat: Ladder) -> None:
    """Not with a number that nobody has, nor from a host that the number is not for."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    number = call.heard

    assert nat.gre(PAC, key=number ^ 1).is_stray
    assert nat.gre(PAC, key=1 if number != 1 else 2).is_stray
    assert nat.gre(OTHER_PAC, key=number).is_stray
    assert nat.gre(BOB, to=PAC, key=100).is_stray
    assert nat.gre(ALICE, to=OTHER_PAC, key=100).is_stray
    assert nat.gre(ALICE, to=PAC, key=101).is_stray


def sent(nat: Ladder, octets: bytes) -> Gre:
    """Send GRE from the PAC to this router: carried if it is of a call, by its key."""
    if not is_enhanced_gre(octets) or len(octets) < 8:
        return Gre(None, None, None)
    return nat.gre(PAC, key=int.from_bytes(octets[6:8]))


FORMS = {
    "data": {"sequence": 0},
    "data with acknowledgement": {"sequence": 1, "acknowledgement": 0xFFFFFFFF},
    "acknowledgement only": {"acknowledgement": 7},
    "neither": {},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_enhanced_gre_is_carried(nat: Ladder, form: str) -> None:
    """S and A move what follows the key, not the key (case 50)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    payload = b"" if form == "acknowledgement only" else b"\xff\x03"
    octets = pack_enhanced_gre(call.heard, payload, **FORMS[form])

    header = enhanced_gre(octets)
    assert header == EnhancedGre(
        call.heard, len(payload), FORMS[form].get("sequence"),
        FORMS[form].get("acknowledgement"), 8 + 4 * len(FORMS[form]),
    )  # fmt: skip
    assert sent(nat, octets).reaches(ALICE, key=1)


OTHERS = {
    "version 0": "2000880b0000{key}",
    "NVGRE": "200065580000{key}",
    "IP in keyed GRE": "200008000000{key}",
    "another protocol, version 1": "200108000000{key}",
    "version 2": "2002880b0000{key}",
}
WRONG = {
    "checksum": ("a001880b0000{key}", "gre_flags"),
    "routing": ("6001880b0000{key}", "gre_flags"),
    "strict source route": ("2801880b0000{key}", "gre_flags"),
    "recursion": ("2101880b0000{key}", "gre_flags"),
    "no key": ("0001880b0000{key}", "gre_flags"),
    "reserved flags": ("2009880b0000{key}", "gre_flags"),
    "cut in the key": ("2001880b0000", "gre_short"),
    "cut in the sequence number": ("3001880b0000{key}000000", "gre_short"),
    "cut in the acknowledgement": ("3081880b0000{key}0000000000", "gre_short"),
    "a payload that is not there": ("2001880b0001{key}", "gre_payload_length"),
}


@pytest.mark.parametrize("form", OTHERS)
def test_other_kinds_of_gre_are_no_calls(nat: Ladder, form: str) -> None:
    """Their key is not a call ID, even where it looks like one (case 51)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    octets = bytes.fromhex(OTHERS[form].format(key=f"{call.heard:04x}"))

    assert enhanced_gre(octets) is None
    assert not is_enhanced_gre(octets)
    assert sent(nat, octets).is_stray


@pytest.mark.parametrize("form", WRONG)
def test_enhanced_gre_that_is_wrong_is_named_so(form: str) -> None:
    """Whoever reads it strictly is told what is wrong (cases 51, 52)."""
    text, slug = WRONG[form]
    octets = bytes.fromhex(text.format(key="1234"))

    assert is_enhanced_gre(octets)
    with pytest.raises(WireError) as caught:
        enhanced_gre(octets)
    assert slug == caught.value.reason


class _Queue:
    """Takes note of what becomes of the one packet."""

    def __init__(self) -> None:
        self.result: tuple[str, bytes] | None = None

    def let_pass(self, packet: SimpleNamespace, octets: bytes | None = None) -> None:
        self.result = "passes", packet.octets if octets is None else octets

    def accept(self, packet: SimpleNamespace) -> None:
        self.result = "is a stray", packet.octets


def through_the_queue(nat: Ladder, gre: bytes) -> tuple[str, bytes] | None:
    """Have the data path `queue`, with the legs as they are, judge GRE from the PAC."""
    path, queue = QueuePath(), _Queue()
    path.install([LegOrder(leg, 0) for leg in nat.legs.carried.values()])
    octets = ip_packet(PAC.address, ROUTER.address, 47, gre)
    path.judge(queue, SimpleNamespace(octets=octets, hook=0, mark=0))
    return queue.result


@pytest.mark.parametrize("form", FORMS)
def test_the_queue_changes_the_key_of_every_form(nat: Ladder, form: str) -> None:
    """The acknowledgement-only packet is the shortest there is (case 50)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    gre, heard = (pack_enhanced_gre(key, b"", **FORMS[form]) for key in (call.heard, 1))

    assert ("passes", ip_packet(PAC.address, ALICE.address, 47, heard)) == (
        through_the_queue(nat, gre)
    )


def test_the_queue_does_not_look_at_the_payload_length(nat: Ladder) -> None:
    """It is for the two ends to say what a false one means (case 52)."""
    call = nat.call(ALICE, call_id=1).to(PAC, answers=100)
    gre, heard = (bytes.fromhex(f"3001880bffff{key:04x}00000000")
                  for key in (call.heard, 1))  # fmt: skip

    assert ("passes", ip_packet(PAC.address, ALICE.address, 47, heard)) == (
        through_the_queue(nat, gre)
    )


@pytest.mark.parametrize("size", [4, 5, 6, 7])
def test_gre_that_is_too_short_for_a_key_is_no_calls(nat: Ladder, size: int) -> None:
    """There is no telling whose it is, so nobody's address is put in (case 52)."""
    call = nat.call(ALICE, call_id=0).to(PAC, answers=100)
    gre = pack_enhanced_gre(call.heard, b"")[:size]

    assert sent(nat, gre).is_stray
    packet = ip_packet(PAC.address, ROUTER.address, 47, gre)
    assert ("is a stray", packet) == through_the_queue(nat, gre)
