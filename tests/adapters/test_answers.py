"""What the daemon answers about calls: the ones that are meant, counted, in pieces."""

import contextlib
import dataclasses
import json
from collections import Counter
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pptp_nat.api import Request
from pptp_nat.control import answers
from pptp_nat.control.answers import Answers
from pptp_nat.control.subscription import Subscription
from pptp_nat.core.events import LegUp
from pptp_nat.core.messages import MessageType
from pptp_nat.core.states import CallState, End
from pptp_nat.core.tuples import Party
from pptp_nat.errors import UsageError
from pptp_nat.linux.datapath import Tally
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router import carrier as carrier_module
from pptp_nat.router import listening as listening_module
from pptp_nat.router.carried import NOTHING
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.listening import Listening
from pptp_nat.tables import packed, packed_connections, rendering, views
from pptp_nat.tables.packing import Packer
from pptp_nat.tables.table import Count, Filter, call_item, call_json, connection_item
from pptp_nat.tables.views import call_row, calls_by_state
from tests.scenario.ladder import ALICE, BOB, HOME_PAC, OTHER_PAC, PAC, TRAVELLER, Ladder

from .schemas import departures


class Daemon(SimpleNamespace):
    """As much of the daemon as questions about calls are about."""

    def __init__(self):
        self.nat = Ladder()
        self.nat.drawn = list(range(1000, 60_000, 7))
        carrier = Carrier(QueuePath())
        listening = Listening(self.nat.translator, carrier)
        super().__init__(
            translator=self.nat.translator, carrier=carrier, listening=listening, wall=0.0
        )
        self.cleared = []

    def clear(self, calls):
        self.cleared += calls

    def up(self, client, server, count=1, *, answers=None):
        """Have *client* place so many calls."""
        tcp = self.nat.connect(client, server)
        for number in range(count):
            answer = number + 100 if answers is None else answers
            self.nat.call(client, call_id=number + 7, over=tcp).to(server, answers=answer)
        calls = list(self.nat.calls)[-count:]
        for call in calls:
            self.carrier.before([LegUp(call, party, call.leg(party), 0) for party in Party], 0.0)
            for party in Party:
                self.carrier.path.credit(call.leg(party), Tally(call.id + party, 0))
        return calls

    def ask(self, do, **arguments):
        """Return the items, and how often the rest was left for another turn."""
        items = list(Answers(self)(Request(1, do, arguments, 0)))
        return [each for each in items if each is not None], items.count(None)


@pytest.fixture
def daemon():
    """Give a daemon without calls."""
    return Daemon()


@pytest.mark.parametrize("many", [0, 10_000])
def test_every_call_is_listed_once_with_its_own_counts(daemon, monkeypatch, many) -> None:
    """Whether each is counted by itself or the whole table is read."""
    monkeypatch.setattr(answers, "FEW_CALLS", many)
    calls = daemon.up(ALICE, PAC, 150) + daemon.up(BOB, PAC, 150)
    items, turns = daemon.ask("list")

    assert [each["id"] for each in items] == [call.id for call in calls]
    for item, call in zip(items, calls, strict=True):
        assert item["counters"]["to_inside"]["packets"] == call.id + Party.ORIGINATOR
        assert item["counters"]["to_remote"]["packets"] == call.id + Party.RESPONDER
    assert turns >= 1
    assert departures(items, "calls") == []


def test_calls_that_end_meanwhile_are_left_out(daemon) -> None:
    """An answer takes many turns, and the world goes on."""
    calls = daemon.up(ALICE, PAC, 200)
    answer = iter(Answers(daemon)(Request(1, "list", {}, 0)))
    shown = [item for item in (next(answer), next(answer), next(answer)) if item is not None]
    daemon.nat._take(daemon.nat.translator.clear(calls[100:], daemon.nat.now))
    shown += [item for item in answer if item is not None]

    assert [call.id for call in calls[:100]] == [each["id"] for each in shown]


@pytest.fixture
def motley(daemon):
    """Give calls of all kinds: up, refused, half done, incoming, forwarded, both ends hidden."""
    nat = daemon.nat
    daemon.up(ALICE, PAC, 3)
    daemon.up(TRAVELLER, HOME_PAC)
    daemon.up(ALICE, HOME_PAC)
    asking = nat.connect(BOB, OTHER_PAC)
    nat.call(BOB, call_id=9, over=asking).to(OTHER_PAC)
    nat.call(BOB, call_id=0, over=asking).to(OTHER_PAC, answers=0)
    nat._take(nat.translator.clear(nat.calls[1:2], nat.now))
    nat.calls[0].last_gre = nat.now
    return daemon


@pytest.mark.parametrize("many", [0, 10_000])
def test_packed_calls_are_the_same_calls(motley, monkeypatch, many) -> None:
    """Two ways of writing one table, and two of writing what a reader sees of it."""
    monkeypatch.setattr(answers, "FEW_CALLS", many)
    plain, _ = motley.ask("list")
    (head, *lines), _ = motley.ask("list", packed=True)
    values = [each for line in lines for each in json.loads(line)["rows"]]

    assert head["columns"] == packed.COLUMNS
    assert len(plain) == len(values) >= 6
    for item, found in zip(plain, values, strict=True):
        row = packed.unpack(found)
        assert call_item(row) == {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in item.items()
        }
        assert packed.text_line(found, 1e4) == rendering.call_line(row, 1e4)
        assert packed.json_line(found) == json.dumps(call_json(row))


def test_packed_connections_are_the_same_connections(motley) -> None:
    """Each form is written twice: the plain one is what the packed one must say."""
    nat = motley.nat
    next(iter(nat.translator.book.connections.values()))._nature = (False, "ipv6")
    plain, _ = motley.ask("connections")
    (head, *lines), turns = motley.ask("connections", packed=True)
    rows = [values for line in lines for values in json.loads(line)["rows"]]

    assert head["columns"] == packed_connections.COLUMNS
    assert turns >= 1
    assert len(plain) == len(rows) > 3
    assert {True, False} == {each["opaque"] for each in plain}
    assert any(each["originator"]["host"] for each in plain)
    for item, values in zip(plain, rows, strict=True):
        row = packed_connections.unpack(values)
        whole = connection_item(row)
        for name in ("age", "echo_age", "echo_seconds"):
            item[name] = whole[name] = item[name] and round(item[name])
        assert item == whole
        assert [packed_connections.text_line(values)] == list(rendering.connections_text([row]))
        assert packed_connections.json_line(values) == json.dumps(connection_item(row))


@given(st.booleans(), st.none() | st.floats(0, 1e6), st.sampled_from([None, "ipv6"]), st.text())
def test_what_peers_say_breaks_no_packed_line(opaque, echo_age, passive, host) -> None:
    """Words of strangers, with quotes, line feeds and what terminals obey among them."""
    echo = [None] * 3 if echo_age is None else [echo_age, 0.25, "responder"]
    said = [host, host, "1.0", 3, 7, 0, 1]
    values = [
        7, "open", "10.0.0.1", 4000, "198.18.7.2", 1723, "originator", opaque, passive, 2, 1.5,
        *echo, said, None,
    ]  # fmt: skip
    row = packed_connections.unpack(values)

    assert [packed_connections.text_line(values)] == list(rendering.connections_text([row]))
    assert packed_connections.json_line(values) == json.dumps(connection_item(row))


def test_an_end_with_words_is_packed_too(motley) -> None:
    """Codes of the answer, error and cause, in the RFC's words."""
    [call, *_] = motley.nat.calls
    call.codes = (int(MessageType.CALL_DISCONNECT_NOTIFY), 2, 1, 17)
    call.end = End.DISCONNECTED
    values = json.loads(Packer(0.0).pack(call, NOTHING, (1, 2, None, None)))
    row = packed.unpack(values)

    assert (1, 2, None, None) == (*row.to_remote[2:], *row.to_inside[2:])
    assert call_row(call, NOTHING, wall=0.0) == dataclasses.replace(
        row, to_remote=Count(0, 0), to_inside=Count(0, 0)
    )
    assert packed.json_line(values) == json.dumps(call_json(row))


def test_many_calls_are_counted_once_and_shown_from_what_is_known(daemon, monkeypatch) -> None:
    """A second list is not worth a second look; who asks for a fresh one gets it."""
    for module in (answers, carrier_module, listening_module):
        monkeypatch.setattr(module, "FEW_CALLS", 1)
    [call, *_] = daemon.up(ALICE, PAC, 3)
    daemon.ask("list", packed=True)
    listening = daemon.listening
    listening._spent = 0.3  # CPU seconds that reading took, say
    (head, *_), _ = daemon.ask("list", packed=True)
    assert (listening.looks, head["counted"]) == (1, listening.read_at)

    listening._over = -1e9
    daemon.carrier.path.credit(call.leg(Party.ORIGINATOR), Tally(1, 0))
    (head, *lines), _ = daemon.ask("list", packed=True, fresh=True)
    assert (listening.looks, head["counted"]) == (2, listening.read_at)
    counted = json.loads(lines[0])["rows"][0][packed.COLUMNS.index("to_inside.packets")]
    assert counted == call.id + Party.ORIGINATOR + 1


@pytest.mark.parametrize("arguments", [{"packed": 1}, {"fresh": "yes"}, {"packed": None}])
def test_what_is_neither_yes_nor_no_is_refused(daemon, arguments) -> None:
    """A typing error is told, not taken for a no."""
    with pytest.raises(UsageError, match="not a yes or no; write true or false"):
        daemon.ask("list", **arguments)


def test_the_state_is_told_in_steps(daemon) -> None:
    """Looking at 100,000 connections takes a tenth of a second."""
    daemon.up(ALICE, PAC, 2)
    assert calls_by_state(daemon.nat.translator.book) == {"up": 2}
    daemon.nat.call(BOB, call_id=9).to(PAC)
    book = daemon.nat.translator.book
    assert calls_by_state(book) == dict(Counter(each.state.value for each in book.calls.values()))


def test_legs_are_what_the_data_path_carries(daemon) -> None:
    """Who looks at GRE looks for these."""
    [call] = daemon.up(ALICE, PAC)
    legs, _ = daemon.ask("legs", call=call.id)
    seen = daemon.nat.external_id(ALICE)

    assert {each["to"]: (each["arrives"], each["leaves"]) for each in legs} == {
        "inside": ({"src": "198.18.7.2", "dst": "198.18.7.1", "key": seen},
                   {"src": "198.18.7.2", "dst": "192.168.77.10", "key": 7}),
        "remote": ({"src": "192.168.77.10", "dst": "198.18.7.2", "key": 100},
                   {"src": "198.18.7.1", "dst": "198.18.7.2", "key": 100}),
    }  # fmt: skip


def test_clearing_takes_the_calls_that_list_would_show(daemon) -> None:
    """And refuses to take all for want of a word."""
    mine = daemon.up(ALICE, PAC, 3)
    daemon.up(BOB, PAC, 2)

    assert Answers(daemon)(Request(1, "clear", {"client": "192.168.77.10"}, 0)) == {"cleared": 3}
    assert daemon.cleared == mine
    with pytest.raises(UsageError, match="clear: say which calls"):
        Answers(daemon)(Request(1, "clear", {}, 0))


@pytest.mark.parametrize("do", ["list", "legs"])
@pytest.mark.parametrize("arguments", [{"state": "down"}, {"clients": 1}, {"call_id": "7"}])
def test_a_wrong_filter_is_refused_at_once(daemon, do, arguments) -> None:
    """And not after half an answer."""
    with pytest.raises(UsageError):
        Answers(daemon)(Request(1, do, arguments, 0))


WORLD = Daemon()
for _client, _server in ((ALICE, PAC), (ALICE, OTHER_PAC), (BOB, PAC), (TRAVELLER, HOME_PAC)):
    WORLD.up(_client, _server, 2)
WORLD.nat.ring(HOME_PAC, call_id=9).to(PAC, answers=7)
WORLD.nat.call(BOB, call_id=0).to(OTHER_PAC)


@given(st.fixed_dictionaries({}, optional={
    "state": st.sampled_from([state.value for state in CallState]),
    "client": st.sampled_from([ALICE, BOB, HOME_PAC, TRAVELLER]).map(
        lambda host: str(IPv4Address(host.address))),
    "server": st.sampled_from([PAC, OTHER_PAC, TRAVELLER]).map(
        lambda host: str(IPv4Address(host.address))),
    "call_id": st.sampled_from([0, 7, 8, 9, 100, 101, 1000]),
    "call": st.integers(0, 30),
}))  # fmt: skip
def test_a_call_is_meant_if_its_row_is(arguments) -> None:
    """The quick look at a call and the filter of rows are one."""
    wanted = Filter.of(arguments)
    for call in WORLD.nat.calls:
        row = views.call_row(call, NOTHING, wall=0.0)

        assert views.fits(call, wanted) == wanted.matches(row)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(["types", "call", "connection", "client", "server", "rate", "seconds", "x"])


@given(st.dictionaries(NAMES, JSON | st.integers(1, 9), max_size=3))
def test_no_arguments_harm_who_subscribes(arguments) -> None:
    """They are what there is, or refused with a word."""
    with contextlib.suppress(UsageError):
        assert Subscription.of(1, arguments, 0.0).number == 1
