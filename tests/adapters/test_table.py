"""The table: what scripts parse stays as it is, what peers say stays harmless, and it is quick."""

import dataclasses
import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pptp_nat.core.states import CallState
from pptp_nat.errors import UsageError
from pptp_nat.tables import rendering, table
from pptp_nat.tables.table import (
    STATES,
    ApiRow,
    CallRow,
    Code,
    ConnectionRow,
    ControlEnds,
    Count,
    End,
    Filter,
    QueueRow,
    Result,
    Side,
    StatusRow,
)

from .schemas import SCHEMAS, departures

UP = CallRow(
    id=7,
    state="up",
    role="PNS",
    direction="outgoing",
    inside=Side("192.168.77.10", 7),
    external=Side("198.18.7.1", 0xB3F1),
    remote=Side("198.18.7.2", 0x65),
    control=ControlEnds("192.168.77.10", 40000, "198.18.7.2", 1723),
    created=1000.0,
    up_since=1000.25,
    setup_seconds=0.25,
    last_seen=1028.5,
    to_remote=Count(12, 624),
    to_inside=Count(11, 590),
    mark=0,
    result=Result(1, "Connected"),
    connection=3,
    cause=None,
)
NEW = dataclasses.replace(
    UP,
    id=8,
    state="requested",
    inside=Side("192.168.77.9", 0),
    remote=Side("198.18.7.2", None),
    up_since=None,
    setup_seconds=None,
    last_seen=None,
    to_remote=Count(0, 0),
    to_inside=Count(0, 0),
    result=Result(None, None),
)
REFUSED = dataclasses.replace(
    NEW,
    state="gone",
    result=Result(2, "general error", Code(4, "no resource"), Code(34, "no circuit available")),
    cause="refused",
)
OPEN = ConnectionRow(
    id=3,
    state="open",
    originator=End("192.168.77.10", 40000, "alice", 'Mi"cro\nsoft\x1b[2J'),
    responder=End("198.18.7.2", 1723, "pac", "Acme", "1.0", 3, 0, 20, 0x120),
    inside="originator",
    opaque=False,
    passive=None,
    calls=1,
    age=61.9,
    echo_age=None,
    echo_seconds=None,
    echo_by=None,
)
STATUS = StatusRow(
    version="0.1.0",
    pid=812,
    started=1000.0,
    datapath="conntrack",
    datapath_reason="a probe entry was inserted and read back",
    queues=(QueueRow(1723, "control", bound=True, waiting=1, dropped=2, user_dropped=3),),
    calls={"requested": 0, "up": 2},
    connections={"open": 2},
    opaque=1,
    api=ApiRow(clients=2, subscribers=1, refused=3, dropped=4, garbled=5),
    paced={"openers_per_client": 7, "openers": 0},
)


def test_text_is_what_conntrack_would_show() -> None:
    """Scripts and eyes that know conntrack -L -p gre know this."""
    expected = (
        "gre      47 30 UP src=192.168.77.10 dst=198.18.7.2 srckey=0x0 dstkey=0x65 "
        "packets=12 bytes=624 src=198.18.7.2 dst=198.18.7.1 srckey=0x0 dstkey=0xb3f1 "
        "packets=11 bytes=590 mark=0 id=7"
    )

    assert expected == rendering.call_line(UP, now=1031.0)


def test_a_number_that_is_not_known_yet_is_not_zero() -> None:
    """0 is an ordinary call ID, and Windows uses it."""
    expected = (
        "gre      47 31 REQUESTED src=192.168.77.9 dst=198.18.7.2 srckey=0x0 dstkey=- "
        "packets=0 bytes=0 src=198.18.7.2 dst=198.18.7.1 srckey=0x0 dstkey=0xb3f1 "
        "packets=0 bytes=0 mark=0 id=8"
    )

    assert expected == rendering.call_line(NEW, now=1031.0)


def test_a_clock_that_was_set_back_shows_no_negative_age() -> None:
    """Unix time is not monotonic."""
    line = rendering.call_line(UP, now=0)

    assert line.startswith("gre      47 0 UP ")


def test_extended_adds_what_else_is_known() -> None:
    """Call IDs in decimal too: tshark and pptp-linux show them so."""
    [line] = rendering.extended([UP], now=1031.0)
    plain = rendering.call_line(UP, now=1031.0)
    head, rest = f"ipv4     2 {plain} ", (
        "connection=3 role=PNS direction=outgoing inside=192.168.77.10/7 "
        "external=198.18.7.1/46065 remote=198.18.7.2/101 "
        "control=192.168.77.10:40000-198.18.7.2:1723 created=1000.000 up=1000.250 setup=0.250 "
        'seen=1028.500 result=1 text="Connected"'
    )  # fmt: skip

    assert head + rest == line


def test_extended_leaves_out_what_is_not_known() -> None:
    """And says why a call is ending."""
    row = dataclasses.replace(NEW, cause="no reply")
    [line] = rendering.extended([row], now=1031.0)

    assert line.endswith(
        "inside=192.168.77.9/0 external=198.18.7.1/46065 remote=198.18.7.2/- "
        'control=192.168.77.10:40000-198.18.7.2:1723 created=1000.000 cause="no reply"'
    )


def test_calls_are_in_the_order_of_clients_and_their_numbers() -> None:
    """As numbers: .9 comes before .10, and a call without a number before all."""
    rows = [
        dataclasses.replace(UP, id=number, inside=Side(address, call_id))
        for number, (address, call_id) in enumerate(
            [("192.168.77.10", 2), ("192.168.77.9", 300), ("192.168.77.10", None),
             ("192.168.77.9", 20), ("10.0.0.1", 5), ("10.0.0.1", 5)]
        )
    ]  # fmt: skip

    assert [row.id for row in table.in_order(reversed(rows))] == [4, 5, 3, 1, 2, 0]


def test_json_is_what_the_schema_says() -> None:
    """docs/calls.schema.json is a promise to other tools."""
    for row in (UP, REFUSED, NEW):
        [call] = json.loads("\n".join(rendering.array([json.dumps(table.call_json(row))])))

        assert departures([call], "calls") == []
    assert call["remote"] == {"address": "198.18.7.2", "call_id": None}
    assert call["result"] == {"code": None, "text": None, "error": None, "cause": None}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_schemas_are_schemas(name) -> None:
    """And each describes every key, so that none is added without a word."""
    Draft202012Validator.check_schema(SCHEMAS[name])


def test_connections_and_status_are_what_their_schemas_say() -> None:
    """As above."""
    echoed = dataclasses.replace(OPEN, echo_age=1.5, echo_seconds=0.02, echo_by="responder")
    for row in (OPEN, echoed):
        assert departures([table.connection_item(row)], "connections") == []
    assert departures(table.status_item(STATUS), "status") == []
    for name, item in (
        ("connections", table.connection_item(OPEN)), ("status", table.status_item(STATUS)),
        ("calls", table.call_json(UP)),
    ):  # fmt: skip
        schema = SCHEMAS[name].get("items", SCHEMAS[name])
        assert set(schema["required"]) == set(schema["properties"]) == set(item)


def test_a_schema_notices_what_is_wrong() -> None:
    """A schema that lets all pass would be no promise."""
    call = table.call_json(UP)
    for wrong in (
        {**call, "state": "down"}, {**call, "mark": -1},
        {**call, "inside": {"address": "nowhere", "call_id": 1}},
        {**call, "inside": {"address": "192.0.2.1", "call_id": 65536}},
        {name: value for name, value in call.items() if name != "counters"},
    ):  # fmt: skip
        assert departures([wrong], "calls") != []


def test_the_states_are_those_of_the_core() -> None:
    """The table must not lag behind the life of a call."""
    assert tuple(state.value for state in CallState) == STATES
    assert list(STATES) == SCHEMAS["calls"]["items"]["properties"]["state"]["enum"]


def test_an_empty_list_is_a_list() -> None:
    """No special case for a script."""
    assert json.loads("".join(rendering.array([]))) == []


def test_xml_is_shaped_like_conntracks() -> None:
    """Its readers find tuples, counters, mark and id where they look for them."""
    root = ET.fromstring("\n".join(rendering.xml([UP, NEW], now=1031.0)))

    assert root.tag == "conntrack"
    new, up = root.findall("flow")
    original, reply, independent = up.findall("meta")
    assert original.findtext("layer3/src") == "192.168.77.10"
    assert original.findtext("layer4/dstkey") == "0x65"
    assert original.findtext("counters/bytes") == "624"
    assert reply.findtext("layer3/dst") == "198.18.7.1"
    assert reply.findtext("layer4/dstkey") == "0xb3f1"
    assert independent.findtext("id") == "7"
    assert independent.findtext("external/call-id") == "46065"
    assert independent.findtext("control/sport") == "40000"
    assert new.find("meta[@direction='original']/layer4/dstkey") is None
    assert new.find("meta[@direction='independent']/up-since") is None


@given(st.text())
def test_no_text_breaks_a_rendering(text) -> None:
    """Causes and names may come from peers."""
    row = dataclasses.replace(UP, cause=text, result=Result(2, text))
    [line] = rendering.extended([row], now=1031.0)
    end = End("198.18.7.2", 1723, text, text)
    [connection] = rendering.connections_text([dataclasses.replace(OPEN, responder=end)])

    for shown in (line, connection):
        assert shown.isascii()
        assert shown.isprintable()
    document = "\n".join(rendering.xml([row], now=1031.0)).encode(errors="xmlcharrefreplace")
    ET.fromstring(document)


def test_rows_survive_the_socket() -> None:
    """What the daemon makes items of, a client makes the same rows of."""
    for row in (UP, NEW, REFUSED):
        assert row == table.call_row(json.loads(json.dumps(table.call_item(row))))
    assert table.connection_row(json.loads(json.dumps(table.connection_item(OPEN)))) == OPEN
    assert table.status_row(json.loads(json.dumps(table.status_item(STATUS)))) == STATUS


def test_a_control_connection_shows_who_is_inside() -> None:
    """And what its ends say of themselves, in quotes and escaped."""
    expected = (
        "tcp      6 61 OPEN src=192.168.77.10 dst=198.18.7.2 sport=40000 dport=1723 "
        'inside=originator calls=1 src_host="alice" '
        r'src_vendor="Mi\"cro\nsoft\u001b[2J" dst_host="pac" dst_vendor="Acme" '
        "dst_version=1.0 dst_framing=async,sync dst_bearer=none dst_channels=20 "
        "dst_firmware=288 id=3"
    )

    assert [expected] == list(rendering.connections_text([OPEN]))


def test_an_opaque_control_connection_is_flagged() -> None:
    """It is the first thing to look for when calls are missing."""
    [line] = rendering.connections_text([dataclasses.replace(OPEN, opaque=True)])

    assert line.endswith(" id=3 [OPAQUE]")


def test_the_state_of_the_daemon_fits_on_a_few_lines() -> None:
    """Version, data path and why, queues, counts."""
    assert list(rendering.status_text(STATUS, now=1031.0)) == [
        "pptp-nat 0.1.0, pid 812, up 31 s",
        "data path conntrack: a probe entry was inserted and read back",
        "queue 1723 (control) bound waiting=1 dropped=2 user_dropped=3",
        "paced openers_per_client=7 openers=0",
        "calls 2 up=2",
        "control connections 2 open=2 opaque=1",
        "socket clients=2 subscribers=1 refused=3 dropped=4 garbled=5",
    ]


@pytest.mark.parametrize(
    ("arguments", "matching"),
    [
        ({}, {7, 8}),
        ({"state": "up"}, {7}),
        ({"state": "gone"}, set()),
        ({"client": "192.168.77.9"}, {8}),
        ({"server": "198.18.7.2"}, {7, 8}),
        ({"server": "192.168.77.9"}, set()),
        ({"call_id": 7}, {7}),
        ({"call_id": 0xB3F1}, {7, 8}),
        ({"call_id": 0x65}, {7}),
        ({"call_id": 0}, {8}),
        ({"call": 8}, {8}),
        ({"call": 8, "state": "up"}, set()),
    ],
)
def test_filters_choose_calls(arguments, matching) -> None:
    """By state, inside address, remote address, any of the numbers, or the row's id."""
    which = Filter.of(arguments)

    assert matching == {row.id for row in (UP, NEW) if which.matches(row)}
    assert arguments == which.arguments()


@pytest.mark.parametrize(
    "arguments",
    [
        {"state": "UP"},
        {"state": 1},
        {"state": ["up"]},
        {"client": "192.168.1"},
        {"client": 1},
        {"server": "::1"},
        {"call_id": 65536},
        {"call_id": -1},
        {"call_id": True},
        {"call_id": "1"},
        {"call": -1},
        {"call": 1.0},
        {"clinet": "192.168.1.1"},
    ],
)
def test_a_filter_that_cannot_match_is_refused(arguments) -> None:
    """`clear` with a filter that is misspelt must not clear everything."""
    with pytest.raises(UsageError):
        Filter.of(arguments)
