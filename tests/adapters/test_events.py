"""Events: what happens to calls, told to those who want to hear it, with why and how much."""

import io
import json
import re
import socket
import subprocess
import sys

import pytest

from pptp_nat import cli, log
from pptp_nat.control.subscription import DEBUG_TYPES, EVENT_TYPES, About, Subscription
from pptp_nat.core.book import Settings
from pptp_nat.core.events import CallChanged
from pptp_nat.core.messages import GENERAL_ERRORS, MessageType, pack
from pptp_nat.core.states import CallState
from pptp_nat.errors import UsageError
from pptp_nat.linux.datapath import Tally
from pptp_nat.router.carried import Counts
from pptp_nat.router.news import News
from pptp_nat.tables.rendering_events import event_text, stamped
from tests.scenario.ladder import ALICE, BOB, PAC, Ladder

from .schemas import departures
from .threaded_daemon import threaded_daemon

M = MessageType
CARRIED = Counts(Tally(11, 590), Tally(12, 624))


class Told(Ladder):
    """A router whose events are told to one subscriber as they happen."""

    def __init__(self, settings=None, **wanted):
        super().__init__(settings)
        self.told = []
        self.subscription = Subscription.of(1, {"types": list(EVENT_TYPES), **wanted}, 0.0)
        self.news = News(self.publish, lambda: True, lambda: True)
        self.carried = CARRIED

    def publish(self, about, make):
        if self.subscription.wants(about):
            self.told.append(make())

    def _take(self, outcome):
        super()._take(outcome)
        ended = {
            each.call.id: self.carried for each in outcome.events
            if isinstance(each, CallChanged) and each.call.state is CallState.GONE
        }  # fmt: skip
        self.news.tell(outcome.events, ended)

    def of(self, *types):
        return [event for event in self.told if event["type"] in types]


@pytest.fixture
def nat():
    """Give a router whose events are told."""
    return Told()


def test_a_call_is_new_changes_and_is_destroyed(nat) -> None:
    """In this order, and with all that is known by then."""
    nat.call(ALICE, call_id=7).to(PAC, answers=100)
    tcp = nat.dialled[ALICE].tcp
    tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=7)
    tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100, result=4, cause=16)
    told = nat.of("new", "update", "destroy")

    assert [(e["type"], e["call"]["state"]) for e in told] == [
        ("new", "requested"), ("update", "up"), ("update", "clearing"), ("destroy", "gone"),
    ]  # fmt: skip
    assert told[0]["call"]["remote"]["call_id"] is None
    assert told[1]["call"]["remote"]["call_id"] == 100
    assert told[3]["call"]["cause"] == "disconnected"
    assert told[3]["call"]["result"] == {
        "code": 4, "text": "request", "error": None,
        "cause": {"code": 16, "text": "normal clearing"},
    }  # fmt: skip


def test_the_last_event_of_a_call_has_all_that_it_carried(nat) -> None:
    """Nobody can ask for it any more afterwards."""
    nat.call(ALICE, call_id=7).to(PAC, answers=100)
    nat.dialled[ALICE].tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100, result=1)
    [end] = nat.of("destroy")

    assert end["call"]["counters"] == {
        "to_remote": {"packets": 12, "bytes": 624}, "to_inside": {"packets": 11, "bytes": 590},
    }  # fmt: skip
    assert "packets=12 bytes=624" in event_text(end)
    assert all("counters" not in e["call"] for e in nat.of("new", "update"))


def test_counts_that_the_kernel_would_not_tell_are_not_zero(nat) -> None:
    """Who bills by them must know."""
    nat.carried = None
    nat.call(ALICE, call_id=7).to(PAC, answers=100)
    nat.dialled[ALICE].tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100, result=1)
    [end] = nat.of("destroy")

    assert end["call"]["counters"] is None
    assert "packets=" not in event_text(end)


@pytest.mark.parametrize("error", range(1, len(GENERAL_ERRORS) + 1))
def test_a_refusing_reply_is_told_in_words(nat, error) -> None:
    """The commonest question at the help desk is why it does not connect."""
    nat.call(ALICE, call_id=7).to(PAC)
    nat.dialled[ALICE].tcp.say(
        PAC, M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=nat.external_id(ALICE),
        result=2, error=error, cause=34,
    )  # fmt: skip
    [end] = nat.of("destroy")
    known = error < len(GENERAL_ERRORS)
    words = GENERAL_ERRORS[error] if known else f"unknown error {error}"

    assert (end["call"]["cause"], end["call"]["result"]["text"]) == ("refused", "general error")
    assert end["call"]["result"]["error"] == {"code": error, "text": words}
    assert event_text(end).endswith(
        f'result=2 text="general error" error={error} error_text="{words}" '
        'cause_code=34 cause_text="no circuit available" cause="refused"'
    )


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        (lambda nat, tcp: tcp.say(ALICE, M.STOP_CONTROL_CONNECTION_REQUEST, reason=1),
         "control connection stopped"),
        (lambda nat, tcp: (tcp.reset(ALICE), nat.wait(60)), "control connection closed"),
        (lambda nat, tcp: nat._take(nat.translator.clear(nat.calls, nat.now)),
         "cleared by operator"),
        (lambda nat, tcp: (tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=7), nat.wait(60)),
         "cleared"),
    ],
    ids=["stop", "reset", "operator", "clear"],
)  # fmt: skip
def test_every_end_says_why(nat, how, cause) -> None:
    """Also where no message of the call's own has ended it."""
    nat.call(ALICE, call_id=7).to(PAC, answers=100)
    how(nat, nat.dialled[ALICE].tcp)
    [end] = nat.of("destroy")

    assert end["call"]["cause"] == cause
    assert f'cause="{cause}"' in event_text(end)


def test_two_changes_in_one_segment_are_two_events(nat) -> None:
    """A client that hangs up at once must not look as if it had never called."""
    tcp = nat.connect(ALICE, PAC)
    tcp.send(ALICE, pack(M.OUTGOING_CALL_REQUEST, call_id=7) + pack(
        M.CALL_CLEAR_REQUEST, call_id=7))  # fmt: skip
    told = nat.of("new", "update")

    assert [(e["type"], e["call"]["state"]) for e in told] == [
        ("new", "requested"), ("update", "clearing"),
    ]  # fmt: skip


def test_control_messages_are_told_as_they_were_sent_and_as_they_went_on(nat) -> None:
    """What a capture on both sides of the router would show, in one line."""
    nat.call(ALICE, call_id=7).to(PAC, answers=100)
    seen = nat.external_id(ALICE)
    messages = nat.of("message")

    assert [(e["message"], e["sender"]) for e in messages] == [
        ("Start-Control-Connection-Request", "originator"),
        ("Start-Control-Connection-Reply", "responder"),
        ("Outgoing-Call-Request", "originator"),
        ("Outgoing-Call-Reply", "responder"),
    ]
    assert (messages[2]["fields"]["call_id"], messages[2]["forwarded"]) == (7, {"call_id": seen})
    assert messages[3]["forwarded"] == {"peer_call_id": 7}
    assert messages[3]["words"] == {"result": "connected"}
    assert [e["call"] for e in messages] == [None, None, nat.calls[0].id, nat.calls[0].id]
    assert event_text(messages[2]).startswith(
        "[MESSAGE] tcp      6 src=192.168.77.10 dst=198.18.7.2 "
    )
    assert f"call_id=7->{seen} " in event_text(messages[2])
    assert "src=198.18.7.2 dst=192.168.77.10" in event_text(messages[3])


def test_whatever_peers_send_fits_on_one_line_and_the_schema(nat) -> None:
    """Unknown types, texts that would move the cursor, results that nobody knows."""
    tcp = nat.connect(ALICE, PAC)
    tcp.send(ALICE, bytes.fromhex("0010 0001 1a2b3c4d 0063 0000 00000000"))
    tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, call_id=7, phone="\x1b[2J\n\u20ac".encode())
    tcp.say(PAC, M.OUTGOING_CALL_REPLY, peer_call_id=nat.calls[0].seen[0], call_id=1, result=77,
            error=88, cause=999)  # fmt: skip
    tcp.finish(PAC)
    nat.wait(60)

    assert {e["type"] for e in nat.told} == {
        "new", "destroy", "connection", "oddity", "message",
    }  # fmt: skip
    for event in nat.told:
        line = event_text(event)
        assert line.isascii()
        assert line.isprintable()
        assert departures(json.loads(json.dumps(event)), "events") == []
    [end] = nat.of("destroy")
    assert end["call"]["result"]["text"] == "unknown result 77"
    assert end["call"]["result"]["cause"] == {"code": 999, "text": "unknown cause 999"}


def test_a_refusal_of_ours_is_an_event() -> None:
    """The call that does not come up leaves no other trace."""
    nat = Told(Settings(calls=1))
    first = nat.call(ALICE, call_id=1).to(PAC)
    nat.call(ALICE, call_id=2, over=first.tcp).to(PAC)
    [refused] = nat.of("refused")

    assert refused["reason"] == "calls_limit"
    assert departures(refused, "events") == []
    assert event_text(refused).startswith("[REFUSED] tcp      6 src=192.168.77.10 ")


def test_labels_are_right_aligned_as_conntracks_are(nat) -> None:
    """``conntrack -E`` has made eyes and scripts used to it."""
    nat.call(ALICE, call_id=7).to(PAC, answers=100)
    nat.dialled[ALICE].tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100, result=1)
    lines = [event_text(e) for e in nat.of("new", "update", "destroy")]

    assert [line[:10] for line in lines] == ["    [NEW] ", " [UPDATE] ", "[DESTROY] "]
    assert re.fullmatch(
        r" {4}\[NEW\] gre      47 \d+ REQUESTED src=192\.168\.77\.10 dst=198\.18\.7\.2 srckey=0x0 "
        r"dstkey=- src=198\.18\.7\.2 dst=198\.18\.7\.1 srckey=0x0 dstkey=0x5c35 mark=0 id=2",
        lines[0],
    )
    assert stamped({**nat.told[0], "time": 1772366400.25}).startswith("[1772366400.250000]\t")


def test_the_log_says_what_a_call_has_carried(nat) -> None:
    """Without a subscriber the log is all that is left."""
    lines = io.StringIO()
    log.configure("info", 0, lines)
    nat.call(ALICE, call_id=7).to(PAC, answers=100)
    nat.dialled[ALICE].tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100, result=2, error=4)
    [gone] = [line for line in lines.getvalue().splitlines() if "event=call-gone" in line]

    assert "to_remote_packets=12 to_remote_bytes=624 to_inside_packets=11" in gone
    assert 'error=4 error_text="no resource"' in gone


# --- who hears what ---------------------------------------------------------------------


def test_debug_types_are_for_those_who_name_them() -> None:
    """A monitoring tool must not drown in messages that it did not ask for."""
    everything = Subscription.of(1, {}, 0.0)

    assert {kind for kind in EVENT_TYPES if not everything.hears(kind)} == DEBUG_TYPES
    assert Subscription.of(1, {"types": ["message"]}, 0.0).hears("message")


@pytest.mark.parametrize(
    ("wanted", "heard"),
    [
        ({}, {ALICE, BOB}),
        ({"client": "192.168.77.10"}, {ALICE}),
        ({"server": "198.18.7.2"}, {ALICE, BOB}),
        ({"server": "198.18.7.9"}, set()),
        ({"client": "192.168.77.11", "server": "198.18.7.2"}, {BOB}),
    ],
)
def test_a_subscriber_hears_of_the_hosts_it_named(wanted, heard) -> None:
    """On a router with a thousand calls one of them is looked at."""
    nat = Told(None, **wanted)
    nat.call(ALICE, call_id=7).to(PAC, answers=100)
    nat.call(BOB, call_id=7).to(PAC, answers=101)
    hosts = {e["call"]["inside"]["address"] for e in nat.of("new", "update")}

    assert {host for host in (ALICE, BOB) if f"192.168.77.{host.address[3]}" in hosts} == heard
    assert bool(nat.of("message")) == bool(heard)


def test_who_names_a_call_hears_its_connection_too_but_no_other_call() -> None:
    """Echoes and Start-Control-Connection are about all calls of a connection."""
    about = ("192.168.77.10", "198.18.7.2")
    one = Subscription.of(1, {"types": ["message", "new"], "call": 7, "connection": 3}, 0.0)

    assert one.wants(About("message", 7, 3, about))
    assert one.wants(About("message", None, 3, about))
    assert not one.wants(About("message", 8, 3, about))
    assert not one.wants(About("message", None, 4, about))
    assert not Subscription.of(1, {"call": 7}, 0.0).wants(About("connection", None, 3, about))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"types": ["dance"]}, "types: no 'dance'; there are new, "),
        ({"dance": 1}, "dance: no such argument; there are types, "),
        ({"client": "host"}, "client: not an IPv4 address"),
        ({"call": -1}, "call: not a call"),
        ({"connection": 1.5}, "connection: a whole number"),
        ({"rate": 0}, "rate: a number above 0"),
        ({"rate": True}, "rate: a number above 0"),
        ({"rate": "many"}, "rate: a number above 0"),
        ({"seconds": 1e9}, "seconds: a number above 0 and up to 86400"),
    ],
)
def test_a_subscription_that_cannot_be_had_is_refused(arguments, said) -> None:
    """With what would be right."""
    with pytest.raises(UsageError, match=said):
        Subscription.of(1, arguments, 0.0)


def test_debug_events_beyond_the_wanted_rate_are_counted() -> None:
    """A storm on the wire is none on the socket."""
    subscription = Subscription.of(1, {"types": ["message", "new"], "rate": 10}, 0.0)

    assert [subscription.admits("message", 0.0) for _ in range(15)] == [True] * 10 + [False] * 5
    assert subscription.suppressed == 5
    assert all(subscription.admits("new", 0.0) for _ in range(100))
    assert [subscription.admits("message", 0.5) for _ in range(6)] == [True] * 5 + [False]


# --- pptp-nat events --------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path):
    """Give a daemon that has nothing to tell yet."""
    with threaded_daemon(tmp_path / "s", lambda _: [{"connection": 3}]) as daemon:
        yield daemon


@pytest.fixture
def run(daemon):
    """Run ``pptp-nat events`` in a process of its own."""
    running = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "pptp_nat", "events", "--socket", str(daemon.path), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def gone(number):
    nat = Told()
    nat.call(ALICE, call_id=number).to(PAC, answers=100)
    nat.dialled[ALICE].tcp.say(PAC, M.CALL_DISCONNECT_NOTIFY, call_id=100, result=1)
    return nat.of("destroy")[0]


def test_events_ends_after_the_number_that_was_asked_for(run, daemon) -> None:
    """A script waits for one call to end and goes on."""
    process = run("--count", "2")
    daemon.tell(gone(1), gone(2), gone(3))
    out, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (0, "")
    assert [line[:9] for line in out.splitlines()] == ["[DESTROY]", "[DESTROY]"]


def test_events_ends_when_its_time_is_over(run, daemon) -> None:
    """Even if nothing happens."""
    process = run("--for", "0.3")
    out, err = process.communicate(timeout=30)

    assert (process.returncode, out, err) == (0, "", "")
    assert not daemon.server.subscribers


def test_events_as_json_are_one_object_per_line_at_once(run, daemon) -> None:
    """A reader gets each as it happens, not when a buffer is full."""
    process = run("-o", "json")
    event = gone(1)
    daemon.tell(event)

    assert json.loads(process.stdout.readline()) == event


def test_events_go_on_with_the_daemon_that_comes_back(run, daemon) -> None:
    """An upgrade must not end everybody's monitoring."""
    process = run("--count", "2", "-o", "json")
    daemon.tell({**gone(1), "n": 1})
    assert json.loads(process.stdout.readline())["n"] == 1
    daemon.close()
    assert process.stderr.readline() == (
        f"pptp-nat: the daemon on {daemon.path} broke off: it has ended, or we were too slow "
        "for it; waiting for it\n"
    )
    daemon.start()
    daemon.tell({**gone(2), "n": 2})
    out, err = process.communicate(timeout=30)

    assert process.returncode == 0
    assert json.loads(out)["n"] == 2
    assert err == "pptp-nat: the daemon tells again; what happened meanwhile is not shown\n"


def test_events_of_a_call_that_there_is_not_is_one_line_and_1(daemon, capsys) -> None:
    """As everywhere."""
    daemon.answer = lambda _: []
    assert cli.main(["events", "--socket", str(daemon.path), "--call", "77"]) == 1
    assert capsys.readouterr().err == (
        "pptp-nat: there is no call 77; `pptp-nat list` shows those that there are\n"
    )


def test_a_subscription_with_an_end_is_told_its_end(daemon) -> None:
    """So that a client knows that it was not cut off."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(daemon.path))
        client.sendall(b'{"v":1,"id":1,"do":"subscribe","seconds":0.2}\n')
        answers = client.makefile()

        assert json.loads(answers.readline())["ok"] is True
        assert json.loads(answers.readline()) == {
            "v": 1, "id": 1, "ok": True, "ended": "its time is over", "suppressed": 0,
        }  # fmt: skip
        client.sendall(b'{"v":1,"id":2,"do":"list"}\n')
        assert json.loads(answers.readline())["item"] == {"connection": 3}
