"""Around one send of verdicts: on record, carried, sent, taken down, told; each once for all."""

from __future__ import annotations

from pptp_nat.core.calls import Call, Connection
from pptp_nat.core.events import CallChanged, Event, LegDown, LegMarked, LegUp, Outcome
from pptp_nat.core.states import CallState, End
from pptp_nat.core.translator import Translator
from pptp_nat.core.tuples import Party
from pptp_nat.linux.datapath import Tally
from pptp_nat.linux.queue_path import QueuePath
from pptp_nat.router.carried import Counts
from pptp_nat.router.carrier import Carrier
from pptp_nat.router.effects import Effects
from pptp_nat.state.contents import Contents
from pptp_nat.state.recorder import Recorder
from pptp_nat.state.records import CallRecord, read

from .test_carried import EXTERNALS, call, down, up


class Router:
    """What effects are made of, each saying when its turn comes."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.told: list[Event] = []
        self.ended: dict[int, Counts | None] = {}
        self.faults: list[BaseException] = []
        self.kept = bytearray()
        self.is_full = False
        self.is_broken = False
        self.seen_at_a_look: list[Event] = []
        self.path = QueuePath()
        self.notes = self.path.notes
        recorder = Recorder(Translator(lambda _: None, lambda: 7), self)
        recorder.begin(0.0)
        self.kept.clear()
        self.order.clear()
        self.carrier = Carrier(self)
        self.effects = Effects(
            recorder, self.carrier, self.look, self.tell, self.faults.append
        )  # fmt: skip

    # A store.

    def append(self, octets: bytes, *, lasting: bool = True) -> None:
        self.order.append("record")
        if self.is_broken:
            raise ValueError("a mistake of ours")
        self.kept += octets

    def renew(self) -> None: ...

    def renewed(self) -> None: ...

    # A data path, and who is told.

    def install(self, orders):
        self.order.append(f"install {len(orders)}")
        return self.path.install(orders)

    def remove(self, legs):
        self.order.append(f"remove {len(legs)}")
        return self.path.remove(legs)

    def tell(self, events, ended) -> None:
        self.order.append("tell")
        self.told += events
        self.ended |= ended

    def look(self, connection: Connection) -> Outcome:
        self.order.append("look")
        return Outcome(events=list(self.seen_at_a_look))

    # Packets.

    def remark(self, orders) -> None:
        self.order.append(f"mark {orders[0].mark}")

    def judge(self, *events: Event, echo: Connection | None = None) -> None:
        """Have a packet cause *events*, as `Daemon._judge` does."""
        outcome = Outcome(events=list(events), connection=echo, echoed=echo is not None)
        self.effects.note(outcome, 1.0)
        self.effects.follow(outcome, 1.0)

    def send(self) -> None:
        self.effects.before()
        self.order.append("verdicts")
        self.effects.after()

    @property
    def on_record(self) -> dict[int, CallRecord]:
        contents = Contents()
        assert read(bytes(self.kept), contents) == len(self.kept)
        return contents.calls


def comes_up(made: Call) -> list[Event]:
    made.state = CallState.UP
    return [*up(made, *Party), CallChanged(made, CallState.REQUESTED)]


def ends(made: Call) -> list[Event]:
    made.state, made.end = CallState.GONE, End.DISCONNECTED
    return [CallChanged(made, CallState.UP), *down(made, *Party)]


def test_calls_of_one_send_are_recorded_carried_and_told_together_and_in_order() -> None:
    router = Router()
    calls = [call(number, EXTERNALS[0], 100 + number) for number in (1, 2, 3)]
    for made in calls:
        router.judge(*comes_up(made))
    assert [] == router.order, "nothing is carried out before its send"
    router.send()

    assert ["record", "install 6", "verdicts", "tell"] == router.order
    assert {1, 2, 3} == set(router.on_record)
    assert calls == [each.call for each in router.told if isinstance(each, CallChanged)]


def test_calls_that_end_in_one_send_leave_together_behind_it_each_with_its_counts() -> None:
    router = Router()
    calls = [call(number, EXTERNALS[0], 100 + number) for number in (1, 2)]
    for made in calls:
        router.judge(*comes_up(made))
    router.send()
    for made in calls:
        router.path.credit(made.leg(Party.RESPONDER), Tally(made.id, 100 * made.id))
    router.order.clear()
    for made in calls:
        router.judge(*ends(made))
    router.send()

    assert ["record", "verdicts", "remove 4", "tell"] == router.order
    carried = {number: counts.to_responder for number, counts in router.ended.items()}
    assert {1: Tally(1, 100), 2: Tally(2, 200)} == carried
    assert [] == list(router.path.matches())


def test_a_call_that_comes_and_goes_within_one_send_leaves_nothing() -> None:
    router = Router()
    made = call(1, EXTERNALS[0], 100)
    router.judge(*comes_up(made))
    router.judge(*ends(made))
    router.send()

    assert ["record", "install 2", "verdicts", "remove 2", "tell"] == router.order
    assert [CallState.REQUESTED, CallState.UP] == [
        each.was for each in router.told if isinstance(each, CallChanged)
    ]
    assert CallState.GONE is router.on_record[1].state
    assert [] == list(router.path.matches())


def test_a_number_that_goes_on_to_another_call_within_one_send_is_the_others() -> None:
    """The server gives the number of a call that ends to the next one at once."""
    router = Router()
    first, second = call(1, EXTERNALS[0], 100), call(2, EXTERNALS[0], 100)
    router.judge(*comes_up(first))
    router.send()
    router.judge(*ends(first))
    router.judge(*comes_up(second))
    router.send()

    assert {(*leg[:3],) for p in Party if (leg := second.leg(p))} == set(router.path.matches())
    assert {1} == set(router.ended)


def test_what_one_step_breaks_on_keeps_no_other_from_its_own() -> None:
    router = Router()
    router.is_broken = True
    router.judge(*comes_up(call(1, EXTERNALS[0], 100)))
    router.send()

    assert ["record", "install 2", "verdicts", "tell"] == router.order
    assert [ValueError] == [type(fault) for fault in router.faults]
    router.is_broken = False
    router.judge(*comes_up(call(2, EXTERNALS[0], 101)))
    router.send()
    assert {2} == set(router.on_record)
    assert 1 == len(router.faults)


def test_nobody_waits_for_the_look_at_a_mark() -> None:
    """An echo has gone on before conntrack is asked; what is found is on record, then in force."""
    router = Router()
    made = call(1, EXTERNALS[0], 100)
    router.judge(*comes_up(made))
    router.send()
    router.order.clear()
    router.seen_at_a_look = [LegMarked(made, made.leg(Party.RESPONDER), 9)]
    router.judge(echo=made.connection)
    router.send()
    assert ["record", "verdicts"] == router.order, "nor does whoever answers the echo"

    assert router.effects.next_timer() is not None
    router.effects.tick(1.5)
    assert ["record", "verdicts", "look", "record", "mark 9"] == router.order
    assert router.effects.next_timer() is None


def test_echoes_that_follow_each_other_are_one_look() -> None:
    router = Router()
    made = [call(number, EXTERNALS[0], 100 + number) for number in range(40)]
    for each in (*made, *made):
        router.judge(echo=each.connection)
        router.send()
    router.order.clear()
    router.effects.tick(1.5)
    assert 0 < router.order.count("look") < len(made), "packets get their turn in between"
    while (due := router.effects.next_timer()) is not None:
        router.effects.tick(due)

    assert ["look"] * len(made) == router.order


def test_a_turn_without_news_asks_nobody_anything() -> None:
    router = Router()
    router.judge()
    router.send()

    assert ["verdicts"] == router.order
    assert not any(isinstance(each, (LegUp, LegDown)) for each in router.told)
