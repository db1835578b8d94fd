"""What a conntrack table shows of PPTP, and what is wrong in it: each rule with its near miss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pptp_nat.analysis.conntrack_entries import Count
from pptp_nat.analysis.conntrack_report import table_json, table_text
from pptp_nat.analysis.conntrack_rules import RULES, table_diagnoses
from pptp_nat.analysis.conntrack_text import Listing
from pptp_nat.analysis.conntrack_tunnels import pptp_table
from pptp_nat.linux.conntrack import ENTRY_MARK

from .conntrack_lines import control, gre
from .json_schema import departures, load

LISTINGS = Path(__file__).parent / "listings"
ALICE, BOB = "192.168.77.10", "192.168.77.11"
EXTERNAL, SERVER = "198.18.7.1", "198.18.7.2"
UP, NONE = Count(3, 210), Count(0, 0)


def dialled(client=ALICE, **more):
    """Return the control connection of an inside client."""
    return control(client, SERVER, seen_as=EXTERNAL, **more)


def outward(key=1, client=ALICE, **more):
    """Return the leg to the server as the daemon makes it."""
    more = {"mark": ENTRY_MARK, "seconds_left": 1_999_000, "assured": True, "carried": UP,
            "returned": NONE, **more}  # fmt: skip
    return gre(client, SERVER, key, SERVER, EXTERNAL, key, 0, **more)


def inward(seen=5000, own=7, client=ALICE, **more):
    """Return the leg to a client as the daemon makes it."""
    more = {"mark": ENTRY_MARK, "seconds_left": 1_999_000, "assured": True, "carried": UP,
            "returned": NONE, **more}  # fmt: skip
    return gre(SERVER, EXTERNAL, seen, client, SERVER, own, seen, **more)


def helped(client=ALICE, own=7, key=1, seen=40000, **more):
    """Return a call as the kernel's helper has it: one entry for both ways."""
    more = {"own": own, "assured": True, "carried": UP, "returned": UP, **more}
    return gre(client, SERVER, key, SERVER, EXTERNAL, key, seen, **more)


def lost_outward(client=ALICE, key=1):
    """Return GRE to the server that nobody has paired: only its address is translated."""
    return gre(client, SERVER, key, SERVER, EXTERNAL, key, 0, seconds_left=25, unreplied=True,
               carried=UP, returned=NONE)  # fmt: skip


def lost_inward(key=7):
    """Return GRE from the server that ends at the router."""
    return gre(SERVER, EXTERNAL, key, EXTERNAL, SERVER, key, 0, seconds_left=29, unreplied=True)


def rules(*entries, ports=(1723,)):
    """Return the names of the rules that find something wrong."""
    return [each.rule for each in table_diagnoses(pptp_table(entries, ports))]


def recorded(by):
    listing = Listing((1723,))
    listing.read([(LISTINGS / f"{by}.extended").read_text()])
    return pptp_table(listing.entries)


HELPER = {"helper": "pptp"}
TROUBLES = {
    "keys_untracked": (
        [dialled(), gre(ALICE, SERVER, None, own=None)._replace(
            back_source_key=None, back_destination_key=None)],
        [dialled(), outward(), inward()],
    ),
    "translated_twice": (
        [dialled(**HELPER), outward(), inward()],
        [dialled(helper="sip"), outward(), inward()],
    ),
    "no_helper": (
        [dialled(), lost_outward(), lost_inward()],
        [dialled(state="TIME_WAIT"), lost_outward(), lost_inward()],
    ),
    "keys_collide": (
        [dialled(), dialled(BOB), lost_outward(), lost_outward(BOB, 2), lost_inward()],
        [dialled(), dialled(BOB), lost_outward(), lost_outward(BOB, 2), lost_inward(),
         lost_inward(8)],
    ),
    "translation_missing": (
        [dialled(), lost_inward()],
        [control(EXTERNAL, SERVER), lost_inward()],  # the router's own client
    ),
    "control_offloaded": ([dialled(offloaded=True)], [dialled(offloaded=True, state="CLOSE")]),
    "control_unanswered": (
        [dialled(state="SYN_SENT", unreplied=True)],
        [dialled(state="SYN_RECV")],
    ),
    "gre_one_way": ([dialled(), lost_outward()], [dialled(), outward(), inward()]),
    "gre_expiring": (
        [dialled(**HELPER), helped(seconds_left=29)],
        [dialled(**HELPER), helped(seconds_left=31)],
    ),
    "gre_absent": ([dialled(**HELPER)], [dialled()]),
    "control_gone": ([outward(), inward()], [dialled(), outward(), inward()]),
    "calls_healthy": (
        [dialled(), outward(), inward()],
        [dialled(), outward(), inward(carried=NONE)],
    ),
}  # fmt: skip


def test_every_rule_has_its_trouble_and_its_near_miss() -> None:
    assert [rule.slug for rule in RULES] == list(TROUBLES)


@pytest.mark.parametrize("rule", TROUBLES)
def test_a_rule_finds_its_trouble_and_not_the_near_miss(rule: str) -> None:
    trouble, near_miss = TROUBLES[rule]

    assert rule in rules(*trouble)
    assert rule not in rules(*near_miss)


def test_a_healthy_table_has_nothing_wrong() -> None:
    """By the daemon, by the helper, and where nothing is hidden."""
    assert ["calls_healthy"] == rules(dialled(), outward(), inward())
    assert ["calls_healthy"] == rules(dialled(**HELPER), helped())
    assert [] == rules()
    assert [] == rules(dialled())


def test_two_clients_with_one_call_id_get_on_with_a_translator() -> None:
    """The same number inside, other numbers outside; the server gives each another of its own."""
    for calls in (
        [outward(1), inward(5000, 7), outward(2, BOB), inward(5001, 7, BOB)],
        [helped(), helped(BOB, key=2, seen=40001)],
    ):
        assert ["calls_healthy"] == rules(dialled(), dialled(BOB), *calls)


def test_two_hosts_behind_one_key_collide() -> None:
    """A helper that follows without translating: the server's packets are for both."""
    found = table_diagnoses(
        pptp_table([dialled(**HELPER), dialled(BOB, **HELPER), helped(seen=7),
                    helped(BOB, key=2, seen=7)])
    )  # fmt: skip

    [collision] = [each for each in found if each.rule == "keys_collide"]
    assert f"with call ID 7 is for {ALICE} and {BOB} at once" in collision.summary
    assert 2 == len(collision.evidence)


def test_gre_that_leaves_under_another_address_is_found() -> None:
    """Masquerading takes the address of the interface; two uplinks have two."""
    other = gre(ALICE, SERVER, 1, SERVER, "198.18.9.9", 1, 0, unreplied=True)
    plain = gre(ALICE, SERVER, 1, unreplied=True)

    for entry, leaves in ((other, "198.18.9.9"), (plain, ALICE)):
        [found] = table_diagnoses(pptp_table([dialled(), entry]))
        assert "translation_missing" == found.rule
        assert f"leaves as {leaves}, its control connection as {EXTERNAL}" in found.summary


def test_one_way_traffic_names_the_silent_side() -> None:
    """Unreplied where nobody made the entry, a counter of zero where the daemon did."""
    for entries, silent in (
        ([lost_outward()], SERVER),
        ([outward(), inward(carried=NONE)], SERVER),
        ([outward(carried=NONE), inward()], ALICE),
        ([helped(unreplied=True, returned=NONE)], SERVER),
    ):
        [found] = table_diagnoses(pptp_table([dialled(), *entries]))
        assert "gre_one_way" == found.rule
        assert found.summary.endswith(f" to {silent} only")


def test_an_entry_that_has_just_begun_is_not_about_to_expire() -> None:
    """The first answer leaves the short timeout in force; the next packet makes it long."""
    assert "gre_expiring" not in rules(dialled(**HELPER), helped(seconds_left=29, assured=False))
    assert "gre_expiring" in rules(dialled(), outward(), inward(seconds_left=80_000))


def test_several_calls_of_one_tunnel_are_halves() -> None:
    """Which two legs make one call only the messages have said; counted they are in pairs."""
    legs = [outward(1), outward(2), inward(5000, 7), inward(5001, 8)]
    table = pptp_table([dialled(), *legs])

    [tunnel] = table.tunnels
    assert 4 == len(tunnel.calls)
    assert all(call.half for call in tunnel.calls)
    assert 2 == tunnel.carried
    assert ["2 calls have GRE both ways"] == [each.summary for each in table_diagnoses(table)]


def test_plain_gre_is_none_of_our_business() -> None:
    """Its keys are zero (gre_pkt_to_tuple); between hosts without PPTP it is left out."""
    tunnelled = gre("192.0.2.1", "192.0.2.2", 0)
    table = pptp_table([tunnelled, dialled()])

    assert (1, []) == (table.other_gre, table.orphans)
    assert [] == table_diagnoses(table)


def test_plain_gre_is_not_blamed_on_a_kernel_without_call_ids() -> None:
    """There, no GRE has keys; only that of PPTP's hosts suffers from it."""
    keyless = gre("192.0.2.1", "192.0.2.2", None, own=None)
    keyless = keyless._replace(back_source_key=None, back_destination_key=None)

    assert [] == rules(dialled(), keyless)


def test_a_forwarded_server_is_paired_too() -> None:
    """The responder is hidden; its peer dials the external address."""
    far = "203.0.113.9"
    connection = control(far, EXTERNAL, forwarded=ALICE)
    to_server = gre(far, EXTERNAL, 5000, ALICE, far, 7, 5000, mark=ENTRY_MARK, carried=UP)
    to_client = gre(ALICE, far, 3, far, EXTERNAL, 3, 0, mark=ENTRY_MARK, carried=UP)
    table = pptp_table([connection, to_server._replace(seconds_left=None),
                        to_client._replace(seconds_left=None)])  # fmt: skip

    [tunnel] = table.tunnels
    [call] = tunnel.calls
    assert (far, ALICE) == (tunnel.originator.own, tunnel.responder.own)
    assert (5000, 7) == (call.to_responder.arriving_key, call.to_responder.leaving_key)
    assert ["calls_healthy"] == [each.rule for each in table_diagnoses(table)]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("helper", ["calls_healthy"]),
        ("daemon", ["calls_healthy"]),
        ("nothing", ["no_helper", "no_helper", "keys_collide"]),
    ],
)
def test_recorded_tables_tell_their_story(by: str, expected: list[str]) -> None:
    """Two clients with call ID 7, by each translator and by none."""
    table = recorded(by)

    assert expected == [each.rule for each in table_diagnoses(table)]
    assert 2 == len(table.tunnels)
    ends = {
        call.to_originator.leaving_key
        for tunnel in table.tunnels for call in tunnel.calls if call.to_originator
    }  # fmt: skip
    assert ends == {"helper": {7}, "daemon": {7, 8}, "nothing": set()}[by]


@pytest.mark.parametrize("by", ["helper", "daemon", "nothing"])
def test_json_is_what_the_schema_says(by: str) -> None:
    """docs/conntrack.schema.json is a promise to other tools."""
    schema = load("conntrack.schema.json")
    table = recorded(by)
    text = "".join(table_json(table, table_diagnoses(table), others=1, garbage=2))
    value = json.loads(text)

    assert [] == list(departures(value, schema, schema, "conntrack"))
    assert schema["properties"]["diagnoses"]["items"]["properties"]["rule"]["enum"] == [
        rule.slug for rule in RULES
    ]


def test_all_troubles_are_what_the_schema_says() -> None:
    schema = load("conntrack.schema.json")
    for trouble, _ in TROUBLES.values():
        table = pptp_table(trouble)
        value = json.loads("".join(table_json(table, table_diagnoses(table))))
        assert [] == list(departures(value, schema, schema, "conntrack"))
        assert list(table_text(table, table_diagnoses(table)))


def test_text_tells_a_few_cases_of_many() -> None:
    """A broken router has the same trouble with all of its clients; one mend suffices."""
    clients = [f"10.0.{n // 250}.{n % 250 + 1}" for n in range(600)]
    entries = [
        entry
        for port, client in enumerate(clients, 2000)
        for entry in (dialled(client, port=port), lost_outward(client, port))
    ]
    table = pptp_table(entries)

    lines = list(table_text(table, table_diagnoses(table)))

    assert 5 == sum(line.startswith("WARNING gre_one_way") for line in lines)
    assert "  and 595 more of gre_one_way" in lines
    assert 1 == sum(line.startswith("  mend: ") for line in lines)


def test_text_shows_numbers_on_both_sides() -> None:
    """What the kernel's helper has made of call ID 7."""
    text = "\n".join(table_text(recorded("helper"), []))

    assert "call 7 (seen as 52316) - 1 by helper: > 3 packets 210 octets, < 1 packets" in text
    assert "ESTABLISHED 431998 s left helper=pptp" in text
