"""One story for each rule that it has to find, and one that it must not take for it.

`TROUBLES` and `NEAR_MISSES` map slugs to functions that tell the story; a trouble may have
several.  Where two captures are needed, a function returns both sides.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from pptp_nat.core.messages import MessageType, Role
from tests.analysis import story as s
from tests.analysis.story import (
    ALICE,
    BOB,
    CCP,
    IPCP,
    LCP,
    PAC_ROLE,
    PNS,
    ROUTER,
    SERVER,
    Call,
    Host,
    Story,
)
from tests.core.wire import ACK, RST, SYN, ip_packet

M = MessageType
Told = Story | tuple[Story, Story]  #: the second is what passes on the other side of the NAT
Tell = Callable[[], Told]
TROUBLES: dict[str, list[Tell]] = {}
NEAR_MISSES: dict[str, list[Tell]] = {}


def trouble(slug: str) -> Callable[[Tell], Tell]:
    """Note that the rule *slug* finds something in this story."""
    return lambda tell: TROUBLES.setdefault(slug, []).append(tell) or tell


def near_miss(*slugs: str) -> Callable[[Tell], Tell]:
    """Note that this story looks like *slugs*, and is not."""

    def note(tell: Tell) -> Tell:
        for slug in slugs:
            NEAR_MISSES.setdefault(slug, []).append(tell)
        return tell

    return note


def dialled(client: Host = ALICE, **fields: int) -> Call:
    return Story().dial(client, SERVER, **fields)


def up(client: Host = ALICE, **fields: int) -> Call:
    """Return a call through which IP flows."""
    return dialled(client, **fields).link().prove().mppe().network().chat(3)


def icmp(kind: int, code: int, about: bytes, *, reporter: Host = ROUTER, mtu: int = 0) -> bytes:
    """Return an ICMP error that quotes *about*, to whoever sent it."""
    body = struct.pack("!BBHHH", kind, code, 0, 0, mtu) + about[:48]
    return ip_packet(reporter.address, about[12:16], 1, body)


# The control connection.


@trouble("port_closed")
def reset_instead_of_syn_ack() -> Story:
    story = Story()
    tcp = s.Tcp(story, ALICE, SERVER, 40001, 1723)
    tcp.segment(ALICE, b"", SYN)
    tcp.segment(SERVER, b"", RST | ACK)
    return story


@trouble("port_closed")
def port_unreachable() -> Story:
    story = Story()
    s.Tcp(story, ALICE, SERVER, 40001, 1723).segment(ALICE, b"", SYN)
    story.put(icmp(3, 3, story.packets[-1][1]))
    return story.wait(5)


@near_miss("port_closed", "port_filtered", "control_reset", "server_silent")
def reset_after_all_is_said() -> Story:
    call = up().clear()
    call.tcp.reset(SERVER)
    return call.story


@trouble("port_filtered")
def three_syns_and_no_answer() -> Story:
    story = Story()
    tcp = s.Tcp(story, ALICE, SERVER, 40001, 1723)
    for pause in (1, 2, 4):
        tcp.segment(ALICE, b"", SYN)
        tcp.sent[ALICE] -= 1
        story.wait(pause)
    tcp.segment(ALICE, b"", SYN)
    return story


@trouble("port_filtered")
def administratively_prohibited() -> Story:
    story = Story()
    s.Tcp(story, ALICE, SERVER, 40001, 1723).segment(ALICE, b"", SYN)
    story.put(icmp(3, 13, story.packets[-1][1]))
    return story


@near_miss("port_filtered")
def a_second_syn_is_answered() -> Story:
    story = Story()
    tcp = s.Tcp(story, ALICE, SERVER, 40001, 1723)
    tcp.segment(ALICE, b"", SYN)
    tcp.sent[ALICE] -= 1
    story.wait(5)
    tcp.segment(ALICE, b"", SYN)
    tcp.segment(SERVER, b"", SYN | ACK)
    tcp.segment(ALICE, b"", ACK)
    return story


@near_miss("port_filtered")
def the_capture_ends_at_once() -> Story:
    story = Story()
    s.Tcp(story, ALICE, SERVER, 40001, 1723).segment(ALICE, b"", SYN)
    return story


@trouble("server_refused")
def not_authorised() -> Story:
    story = Story()
    tcp = story.open(ALICE, SERVER)
    tcp.say(ALICE, M.START_CONTROL_CONNECTION_REQUEST, version=0x100, host=b"alice")
    tcp.say(SERVER, M.START_CONTROL_CONNECTION_REPLY, version=0x100, result=4)
    return story


@near_miss("server_refused", "call_refused", "server_silent", "not_pptp", "call_unanswered")
def accepted() -> Story:
    return up().story


@trouble("server_silent")
def accepts_and_says_nothing() -> Story:
    story = Story()
    tcp = story.open(ALICE, SERVER)
    tcp.say(ALICE, M.START_CONTROL_CONNECTION_REQUEST, version=0x100)
    story.wait(30)
    tcp.finish(ALICE)
    return story


@trouble("not_pptp")
def a_web_server_on_port_1723() -> Story:
    story = Story()
    tcp = story.open(ALICE, SERVER)
    tcp.say(ALICE, M.START_CONTROL_CONNECTION_REQUEST, version=0x100)
    tcp.segment(SERVER, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    tcp.finish(SERVER)
    return story


@trouble("echo_timeout")
def an_echo_is_not_answered() -> Story:
    call = up()
    call.story.wait(60)
    call.tcp.echo(ALICE, answered=False)
    call.story.wait(61)
    call.tcp.finish(ALICE)
    return call.story


@near_miss("echo_timeout")
def an_echo_is_answered() -> Story:
    call = up()
    call.story.wait(60)
    call.tcp.echo(ALICE)
    call.story.wait(61)
    call.tcp.finish(ALICE)
    return call.story


@near_miss("echo_timeout")
def the_capture_ends_soon_after_an_echo() -> Story:
    call = up()
    call.tcp.echo(ALICE, answered=False)
    return call.story.wait(5)


@trouble("control_reset")
def reset_in_mid_call() -> Story:
    call = up()
    call.tcp.reset(SERVER)
    return call.story


@trouble("server_stopped")
def shut_down() -> Story:
    call = up()
    call.tcp.say(SERVER, M.STOP_CONTROL_CONNECTION_REQUEST, reason=3)
    call.tcp.say(ALICE, M.STOP_CONTROL_CONNECTION_REPLY, result=1)
    call.tcp.finish(SERVER)
    return call.story


@near_miss("server_stopped", "control_reset")
def stopped_by_the_client() -> Story:
    call = up().clear()
    call.tcp.say(ALICE, M.STOP_CONTROL_CONNECTION_REQUEST, reason=1)
    call.tcp.say(SERVER, M.STOP_CONTROL_CONNECTION_REPLY, result=1)
    call.tcp.finish(ALICE)
    return call.story


def echoes_again_and_again(times: int) -> Story:
    call = up()
    for at in range(10):
        call.tcp.echo(ALICE, identifier=at)
    for _ in range(times):
        octets = s.pack(M.ECHO_REQUEST, identifier=9)
        call.tcp.segment(ALICE, octets, back=16)
        call.story.wait(1)
    return call.story


@trouble("control_lossy")
def segments_come_again_and_again() -> Story:
    return echoes_again_and_again(8)


@near_miss("control_lossy")
def one_segment_comes_again() -> Story:
    return echoes_again_and_again(1)


@trouble("set_link_info_damaged")
def set_link_info_for_nobody() -> Story:
    call = dialled().link()
    call.tcp.say(ALICE, M.SET_LINK_INFO, peer_call_id=4711, send_accm=0, receive_accm=0)
    return call.story


@near_miss("set_link_info_damaged")
def set_link_info() -> Story:
    call = dialled()
    call.tcp.say(ALICE, M.SET_LINK_INFO, peer_call_id=100, send_accm=0xFFFFFFFF,
                 receive_accm=0xFFFFFFFF)  # fmt: skip
    return call.link().story


@trouble("split_messages")
def a_request_in_two_segments() -> Story:
    story = Story()
    tcp = story.connect(ALICE, SERVER)
    tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, 13, call_id=1)
    tcp.say(SERVER, M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=1, result=1)
    return story


@near_miss("split_messages")
def each_message_in_its_segment() -> Story:
    return up().story


# How calls come up and end.


@trouble("call_refused")
def busy() -> Story:
    story = Story()
    tcp = story.connect(ALICE, SERVER)
    tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, call_id=1)
    tcp.say(SERVER, M.OUTGOING_CALL_REPLY, call_id=0, peer_call_id=1, result=4)
    return story


@trouble("call_unanswered")
def no_reply() -> Story:
    story = Story()
    tcp = story.connect(ALICE, SERVER)
    tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, call_id=1)
    story.wait(60)
    tcp.finish(ALICE)
    return story


@near_miss("call_unanswered", "slow_setup")
def a_reply_after_three_seconds() -> Story:
    story = Story()
    tcp = story.connect(ALICE, SERVER)
    tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, call_id=1)
    story.wait(3)
    tcp.say(SERVER, M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=1, result=1)
    Call(story, tcp, ALICE, SERVER, 1, 100).link().prove().network().chat()
    return story


@trouble("slow_setup")
def a_reply_after_eight_seconds() -> Story:
    story = Story()
    tcp = story.connect(ALICE, SERVER)
    tcp.say(ALICE, M.OUTGOING_CALL_REQUEST, call_id=1)
    story.wait(8)
    tcp.say(SERVER, M.OUTGOING_CALL_REPLY, call_id=100, peer_call_id=1, result=1)
    return story


@trouble("gre_unreachable")
def protocol_unreachable() -> Story:
    call = dialled()
    for _ in range(3):
        call.ppp(PNS, LCP, s.REQUEST, s.option(1, b"\x05\x78"))
        call.story.put(icmp(3, 2, call.story.packets[-1][1], reporter=SERVER))
        call.story.wait(3)
    return call.story


@near_miss("gre_unreachable")
def somebody_else_s_gre_is_unreachable() -> Story:
    call = up()
    other = ip_packet(
        BOB.address, SERVER.address, 47, struct.pack("!HHHH", 0x3001, 0x880B, 4, 9) + bytes(8)
    )
    call.story.put(icmp(3, 2, other, reporter=SERVER))
    return call.story


def dying(call: Call, role: Role, times: int = 5) -> Story:
    """Tell of LCP of one side that hears nothing."""
    for _ in range(times):
        call.ppp(
            role, LCP, s.REQUEST, s.option(1, b"\x05\x78") + s.option(5, b"\1\2\3\4"), identifier=1
        )
        call.story.wait(3)
    return call.story


@trouble("no_gre_from_server")
def only_the_client_s_gre() -> Story:
    return dying(dialled(), PNS)


@trouble("no_gre_from_client")
def only_the_server_s_gre() -> Story:
    return dying(dialled(), PAC_ROLE)


@near_miss("no_gre_from_server", "no_gre_from_client", "no_gre")
def the_first_gre_is_late() -> Story:
    call = dialled()
    call.ppp(PNS, LCP, s.REQUEST, s.option(1, b"\x05\x78"))
    call.story.wait(3)
    return call.link().prove().network().chat().story


@near_miss("no_gre")
def no_gre_yet() -> Story:
    return dialled().story


@trouble("no_gre")
def no_gre_at_all() -> Story:
    call = dialled()
    call.story.wait(30)
    call.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=1)
    return call.story


def both_sides(*, blocked: bool) -> tuple[Story, Story]:
    """Tell of a call on both sides of a NAT that may keep the server's GRE back."""
    inside, outside = Story(), Story()
    calls = (
        inside.dial(ALICE, SERVER, call_id=1, serial=77),
        outside.dial(ROUTER, SERVER, call_id=5001, serial=77),
    )
    for at in range(5):
        for call in calls:
            call.ppp(PNS, LCP, s.REQUEST, s.option(1, b"\x05\x78"), identifier=at)
            if call is calls[1] or not blocked:
                call.ppp(PAC_ROLE, LCP, s.ACKED, s.option(1, b"\x05\x78"), identifier=at)
                call.ppp(PAC_ROLE, LCP, s.REQUEST, s.option(1, b"\x05\x78"), identifier=1)
            call.story.wait(3)
    if not blocked:
        for call in calls:
            call.link().prove().mppe().network().chat()
    return inside, outside


@trouble("gre_lost_in_nat")
def the_server_s_gre_does_not_come_in() -> tuple[Story, Story]:
    return both_sides(blocked=True)


@near_miss("gre_lost_in_nat")
def all_gre_comes_in() -> tuple[Story, Story]:
    return both_sides(blocked=False)


@trouble("server_hung_up")
def accepted_and_closed() -> Story:
    call = dialled()
    call.ppp(PNS, LCP, s.REQUEST, s.option(1, b"\x05\x78"))
    call.story.wait(1)
    call.tcp.finish(SERVER)
    return call.story


@near_miss("server_hung_up", "call_disconnected")
def hung_up_by_the_client() -> Story:
    return up().hang_up().story


@trouble("gre_lost_behind")
def the_client_is_deaf() -> Story:
    call = dialled()
    for _ in range(5):
        call.ppp(PNS, LCP, s.REQUEST, s.option(1, b"\x05\x78"), identifier=1)
        call.ppp(PAC_ROLE, LCP, s.ACKED, s.option(1, b"\x05\x78"), identifier=1)
        call.ppp(PAC_ROLE, LCP, s.REQUEST, s.option(5, b"\1\2\3\4"), identifier=1)
        call.story.wait(3)
    return call.story


@near_miss("gre_lost_behind")
def one_ack_is_lost_behind() -> Story:
    call = dialled()
    for _ in range(2):
        call.ppp(PNS, LCP, s.REQUEST, s.option(1, b"\x05\x78"), identifier=1)
        call.ppp(PAC_ROLE, LCP, s.ACKED, s.option(1, b"\x05\x78"), identifier=1)
        call.story.wait(3)
    return call.link().prove().network().chat().story


def resting(seconds: float, *, answered: bool) -> Story:
    """Tell of a call that rests, and in which the server goes on."""
    call = up()
    call.story.wait(seconds)
    for _ in range(8):
        call.seal(PAC_ROLE)
        if answered:
            call.seal(PNS)
        call.story.wait(2)
    call.tcp.echo(ALICE)
    return call.story


@trouble("idle_death")
def dead_after_two_minutes_of_rest() -> Story:
    return resting(120, answered=False)


@near_miss("idle_death", "gone_silent")
def alive_after_two_minutes_of_rest() -> Story:
    return resting(120, answered=True)


@trouble("gone_silent")
def the_client_stops_in_mid_sentence() -> Story:
    call = up().chat(5, every=5)
    call.story.wait(1)
    for _ in range(8):
        call.seal(PAC_ROLE)
        call.story.wait(2)
    call.tcp.echo(ALICE)
    return call.story


@near_miss("gone_silent", "gone_into_tunnel", "one_way_silence")
def a_short_monologue() -> Story:
    call = up()
    for _ in range(8):
        call.seal(PAC_ROLE)
    return call.story


@trouble("gone_into_tunnel")
def silent_with_everything_once_it_has_an_address() -> Story:
    call = dialled().link().prove().mppe().network()
    call.seal(PNS)
    for _ in range(8):
        call.seal(PAC_ROLE)
        call.story.wait(3)
    call.tcp.segment(SERVER, b"", ACK)
    return call.story


@near_miss("gone_silent", "idle_death", "one_way_silence")
def a_monologue_to_one_who_never_acknowledges() -> Story:
    call = dialled()
    call.acknowledges = False
    call.link().prove().mppe().network()
    for pause in (40, 2, 2, 2, 2, 2, 2, 2):
        call.story.wait(pause)
        call.seal(PAC_ROLE)
    call.tcp.echo(ALICE)
    return call.story


@trouble("call_disconnected")
def lost_carrier() -> Story:
    call = up()
    call.tcp.say(SERVER, M.CALL_DISCONNECT_NOTIFY, call_id=100, result=1, cause=16)
    return call.story


@trouble("wrong_disconnect_id")
def accel_ppp_names_the_client_s_number() -> Story:
    call = up(call_id=7)
    call.tcp.say(ALICE, M.CALL_CLEAR_REQUEST, call_id=7)
    call.tcp.say(SERVER, M.CALL_DISCONNECT_NOTIFY, call_id=7, result=4)
    return call.story


@near_miss("wrong_disconnect_id")
def the_server_names_its_own_number() -> Story:
    return up(call_id=7).hang_up().story


# PPP.


@trouble("loopback")
def the_client_hears_itself() -> Story:
    call = dialled()
    for _ in range(4):
        for role in (PNS, PAC_ROLE):
            call.ppp(role, LCP, s.REQUEST, s.option(5, b"\1\2\3\4"), identifier=1)
        call.story.wait(3)
    return call.story


@near_miss("loopback", "authentication_mismatch", "not_converging", "lcp_timeout",
           "authentication_failed", "authentication_no_response", "authentication_no_verdict",
           "encryption_mismatch", "not_encrypted", "no_address", "ip_loop", "mppe_resets",
           "plain_password", "escaped_frames")  # fmt: skip
def all_is_well() -> Story:
    return up().hang_up().story


@trouble("authentication_mismatch")
def wants_pap_gets_ms_chap() -> Story:
    call = dialled()
    for at in range(4):
        call.ppp(PAC_ROLE, LCP, s.REQUEST, s.option(3, s.PLAIN), identifier=at)
        call.ppp(PNS, LCP, s.NAK, s.option(3, s.MS_CHAP_2), identifier=at)
    call.ppp(PAC_ROLE, LCP, s.TERMINATE, b"peer refused to authenticate")
    return call.story


@trouble("authentication_mismatch")
def eap_without_a_common_method() -> Story:
    call = dialled().link(b"\xc2\x27")
    call.ppp(PAC_ROLE, s.EAP, 1, b"\x01", identifier=1)
    call.ppp(PNS, s.EAP, 2, b"\x01alice", identifier=1)
    call.ppp(PAC_ROLE, s.EAP, 1, b"\x0d\x20", identifier=2)
    call.ppp(PNS, s.EAP, 2, b"\x03\x1a", identifier=2)
    call.ppp(PAC_ROLE, LCP, s.TERMINATE, b"EAP")
    return call.story


@near_miss("authentication_mismatch", "not_converging")
def a_nak_that_is_heeded() -> Story:
    call = dialled()
    call.ppp(PAC_ROLE, LCP, s.REQUEST, s.option(3, s.CHAP_MD5), identifier=1)
    call.ppp(PNS, LCP, s.NAK, s.option(3, s.MS_CHAP_2), identifier=1)
    return call.link().prove().mppe().network().chat().story


@trouble("not_converging")
def neither_gives_way() -> Story:
    call = dialled()
    for at in range(8):
        call.ppp(PNS, LCP, s.REQUEST, s.option(1, b"\x05\xdc"), identifier=at)
        call.ppp(PAC_ROLE, LCP, s.NAK, s.option(1, b"\x02\x00"), identifier=at)
    return call.story


@trouble("lcp_timeout")
def both_ask_and_none_answers() -> Story:
    call = dialled()
    for at in range(5):
        call.ppp(PNS, LCP, s.REQUEST, s.option(5, b"\1\2\3\4"), identifier=at)
        call.ppp(PAC_ROLE, LCP, s.REQUEST, s.option(5, b"\5\6\7\x08"), identifier=at)
        call.story.wait(3)
    return call.story


@trouble("authentication_failed")
def wrong_password() -> Story:
    call = dialled().link().prove("bob", failure="E=691 R=0 C=00 V=3 M=Access denied")
    call.ppp(PNS, LCP, s.TERMINATE, b"Failed to authenticate ourselves to peer")
    return call.story


@near_miss("authentication_failed")
def right_at_the_second_try() -> Story:
    call = dialled().link().prove("bob", failure="E=691 R=1 C=00 V=3 M=no").prove("bob")
    return call.mppe().network().chat().story


@trouble("authentication_no_response")
def challenges_into_the_void() -> Story:
    call = dialled().link()
    for at in range(5):
        call.ppp(PAC_ROLE, s.CHAP, 1, b"\x10" + s.SECRET + b"pptpd", identifier=at)
        call.story.wait(3)
    return call.story


@trouble("authentication_no_verdict")
def the_server_never_judges() -> Story:
    call = dialled().link()
    call.ppp(PAC_ROLE, s.CHAP, 1, b"\x10" + s.SECRET + b"pptpd", identifier=9)
    call.ppp(PNS, s.CHAP, 2, b"\x31" + bytes(49) + b"bob", identifier=9)
    call.story.wait(20)
    call.tcp.segment(ALICE, b"", ACK)
    return call.story


@near_miss("authentication_no_verdict", "authentication_no_response")
def the_capture_ends_before_the_verdict() -> Story:
    call = dialled().link()
    call.ppp(PAC_ROLE, s.CHAP, 1, b"\x10" + s.SECRET + b"pptpd", identifier=9)
    call.ppp(PNS, s.CHAP, 2, b"\x31" + bytes(49) + b"bob", identifier=9)
    return call.story


@trouble("encryption_mismatch")
def mppe_is_rejected() -> Story:
    call = dialled().link().prove()
    call.ppp(PAC_ROLE, CCP, s.REQUEST, s.option(18, s.STATELESS_128), identifier=1)
    call.ppp(PNS, CCP, s.REJECT, s.option(18, s.STATELESS_128), identifier=1)
    call.ppp(PAC_ROLE, LCP, s.TERMINATE, b"MPPE required but peer negotiation failed")
    return call.story


@trouble("encryption_mismatch")
def forty_bits_against_128() -> Story:
    call = dialled().link().prove()
    for at in range(4):
        call.ppp(PAC_ROLE, CCP, s.REQUEST, s.option(18, s.STATELESS_128), identifier=at)
        call.ppp(PNS, CCP, s.NAK, s.option(18, b"\x01\x00\x00\x20"), identifier=at)
    call.ppp(PNS, LCP, s.TERMINATE, b"\1\2\3\4\x00<\xcdt\x00\x00\x02\xe6")
    return call.story


@near_miss("encryption_mismatch")
def fewer_bits_are_agreed_on() -> Story:
    call = dialled().link().prove()
    call.ppp(PAC_ROLE, CCP, s.REQUEST, s.option(18, b"\x01\x00\x00\xe0"), identifier=1)
    call.ppp(PNS, CCP, s.NAK, s.option(18, s.STATELESS_128), identifier=1)
    return call.mppe().network().chat().story


@trouble("not_encrypted")
def anybody_can_read_it() -> Story:
    call = dialled().link().prove().network()
    for role in (PNS, PAC_ROLE):
        call.gre(role, s.ppp(s.IP, s.echo_request()))
    return call.story


@trouble("no_address")
def nobody_gives_an_address() -> Story:
    call = dialled().link().prove().mppe()
    for at in range(4):
        call.ppp(PNS, IPCP, s.REQUEST, s.option(3, bytes(4)), identifier=at)
        call.story.wait(3)
    call.tcp.segment(ALICE, b"", ACK)
    return call.story


@trouble("no_address")
def ipcp_is_rejected() -> Story:
    call = dialled().link().prove()
    call.ppp(PNS, IPCP, s.REQUEST, s.option(3, bytes(4)))
    call.ppp(PAC_ROLE, LCP, s.PROTOCOL_REJECT, b"\x80\x21" + s.control(1, 2))
    return call.story


def interface_identifiers(call: Call) -> Call:
    """Let IPV6CP agree."""
    return call.agree(s.IPV6CP, {
        PNS: s.option(1, b"\0\0\0\0\0\0\0\1"), PAC_ROLE: s.option(1, b"\0\0\0\0\0\0\0\2"),
    })  # fmt: skip


@trouble("no_address")
def ipv6_comes_up_and_ipv4_does_not() -> Story:
    call = interface_identifiers(dialled().link().prove().mppe())
    for at in range(4):
        call.ppp(PNS, IPCP, s.REQUEST, s.option(3, bytes(4)), identifier=at)
        call.story.wait(3)
    call.tcp.segment(ALICE, b"", ACK)
    return call.story


@near_miss("no_address")
def ipv6_alone_is_wanted() -> Story:
    call = interface_identifiers(dialled().link().prove().mppe()).chat()
    call.story.wait(20)
    return call.chat().story


@trouble("ip_loop")
def pptp_in_the_tunnel_to_the_same_server() -> Story:
    call = dialled().link().prove().network()
    for _ in range(3):
        inner = ip_packet(bytes((10, 9, 9, 2)), SERVER.address, 47, bytes(40))
        call.gre(PNS, s.ppp(s.IP, inner))
    return call.story


@trouble("ip_loop")
def gre_with_the_inner_address() -> Story:
    call = dialled().link().prove().mppe().network()
    for _ in range(4):
        call.gre(PNS, b"\x00\xfd\x90\x00" + bytes(60), source=Host("inner", bytes((10, 9, 9, 2))))
    return call.story


@near_miss("ip_loop")
def a_tunnel_to_another_server_in_the_tunnel() -> Story:
    call = dialled().link().prove().network()
    for _ in range(3):
        inner = ip_packet(bytes((10, 9, 9, 2)), s.OTHER_SERVER.address, 47, bytes(40))
        call.gre(PNS, s.ppp(s.IP, inner))
    return call.story


@trouble("mppe_resets")
def encryption_stumbles() -> Story:
    call = dialled().link().prove().mppe(b"\x00\x00\x00\x40").network().chat()
    for at in range(4):
        call.ppp(PNS, CCP, s.RESET, identifier=at)
        call.chat()
    return call.story


@near_miss("mppe_resets")
def encryption_stumbles_once() -> Story:
    call = dialled().link().prove().mppe(b"\x00\x00\x00\x40").network().chat()
    return call.ppp(PNS, CCP, s.RESET).chat().story


@trouble("plain_password")
def pap() -> Story:
    call = dialled().link(s.PLAIN)
    call.ppp(PNS, s.PAP, 1, b"\x03bob\x07hunter2", identifier=1)
    call.ppp(PAC_ROLE, s.PAP, 2, b"\x00", identifier=1)
    return call.mppe().network().chat().story


@trouble("escaped_frames")
def serial_framing() -> Story:
    call = dialled()
    for at in range(3):
        body = s.control(s.REQUEST, at, s.option(5, b"\1\2\3\4"))
        stuffed = b"".join(
            bytes((0x7D, each ^ 0x20)) if each < 0x20 else bytes((each,)) for each in body
        )
        call.gre(PNS, b"\x7e\xff\x7d\x23\xc0\x21" + stuffed + b"\x7e")
    return call.link().prove().mppe().network().chat().story


# The data.


def lossy(lost: int, of: int) -> Story:
    """Send *of* packets each way, of which every so many-eth of the server's is lost."""
    call = up()
    for at in range(of):
        call.seal(PNS)
        if lost and at % (of // lost) == of // lost // 2:
            call.sequences[PAC_ROLE] += 1
        else:
            call.seal(PAC_ROLE)
    return call.story


@trouble("loss")
def one_of_twenty_is_lost() -> Story:
    return lossy(20, 400)


@near_miss("loss", "duplicates", "reordering", "window_stall", "window_overrun",
           "never_acknowledges", "fragmented_gre", "mtu_black_hole", "malformed_gre")  # fmt: skip
def two_of_four_hundred_are_lost() -> Story:
    return lossy(2, 400)


def shuffled(times: int) -> Story:
    call = up()
    for at in range(200):
        if at < times:
            number = call.sequences[PAC_ROLE]
            call.seal(PAC_ROLE, sequence=number + 1).seal(PAC_ROLE, sequence=number)
            call.sequences[PAC_ROLE] = number + 2
        call.seal(PNS).seal(PAC_ROLE)
    return call.story


@trouble("reordering")
def some_come_late() -> Story:
    return shuffled(20)


@near_miss("reordering")
def one_comes_late() -> Story:
    return shuffled(1)


def repeated(times: int) -> Story:
    """Have the server's packets come twice, a while apart, so that no capture does it."""
    call = up()
    for at in range(100):
        number = call.sequences[PAC_ROLE]
        call.seal(PAC_ROLE)
        call.seal(PNS)
        if at < times:
            call.story.wait(0.2)
            call.seal(PAC_ROLE, sequence=number)
    return call.story


@trouble("duplicates")
def many_come_twice() -> Story:
    return repeated(20)


@near_miss("duplicates")
def two_come_twice() -> Story:
    return repeated(2)


def windowed(times: int, pause: float) -> Story:
    """Tell of a sender that keeps to a window of four and waits for its acknowledgement."""
    call = up(window=4)
    call.acknowledges = False
    for _ in range(times):
        for _ in range(4):
            call.seal(PNS, 900)
        call.story.wait(pause)
        call.ack(PAC_ROLE, call.sequences[PNS] - 1)
    return call.story


@trouble("window_stall")
def waits_for_each_window() -> Story:
    return windowed(6, 1.0)


@near_miss("window_stall", "window_overrun")
def acknowledged_in_time() -> Story:
    return windowed(6, 0.05)


@trouble("window_overrun")
def more_than_the_window() -> Story:
    call = up(window=4)
    call.acknowledges = False
    for _ in range(12):
        call.seal(PNS, 900)
    call.ack(PAC_ROLE, call.sequences[PNS] - 1)
    return call.story


@trouble("never_acknowledges")
def a_server_that_acknowledges_nothing() -> Story:
    call = dialled()
    call.acknowledges = False
    call.link().prove().mppe().network()
    for _ in range(60):
        call.gre(PNS, b"\x00\xfd\x90\x00" + bytes(60), ack=max(call.sequences[PAC_ROLE] - 1, 0))
        call.seal(PAC_ROLE)
    return call.story


@trouble("one_way_silence")
def half_a_minute_of_monologue() -> Story:
    call = up()
    for _ in range(10):
        call.seal(PAC_ROLE)
        call.story.wait(3)
    return call.chat(3).story


def in_fragments(count: int) -> Story:
    """Have some of the server's packets come in two fragments."""
    call = up()
    story = call.story
    for at in range(100):
        call.seal(PNS)
        call.seal(PAC_ROLE, 1400)
        if at < count:
            time, packet = story.packets.pop()
            body, cut = packet[20:], 800
            for offset, part, more in ((0, body[:cut], 1), (cut, body[cut:], 0)):
                fragment = ip_packet(
                    packet[12:16], packet[16:20], 47, part, fragment=more << 13 | offset // 8
                )
                named = fragment[:4] + struct.pack("!H", at + 1) + fragment[6:10] + b"\0\0"
                story.packets.append((time, named + fragment[12:]))
    return story


@trouble("fragmented_gre")
def gre_in_fragments() -> Story:
    return in_fragments(20)


@near_miss("fragmented_gre")
def one_packet_in_fragments() -> Story:
    return in_fragments(1)


def segment_again(story: Story, call: Call, *, doubling: bool) -> Story:
    """Have TCP inside the tunnel send its first large segment again and again."""
    for at in range(8):
        call.seal(PNS, 1390)
        story.wait(0.3 * 2 ** min(at, 6) if doubling else 0.4)
        call.seal(PAC_ROLE, 60)
    return story


@trouble("mtu_black_hole")
def the_largest_packets_vanish() -> Story:
    call = up()
    return segment_again(call.story, call, doubling=True)


@trouble("mtu_black_hole")
def fragmentation_needed() -> Story:
    call = up()
    call.seal(PNS, 1390)
    call.story.put(icmp(3, 4, call.story.packets[-1][1], mtu=1400))
    return call.story


@trouble("mtu_black_hole")
def large_packets_go_in_and_do_not_come_out() -> tuple[Story, Story]:
    inside, outside = Story(), Story()
    for story, client, number in ((inside, ALICE, 1), (outside, ROUTER, 5001)):
        call = story.dial(client, SERVER, call_id=number, serial=77)
        call.link().prove().mppe().network().chat(5)
        for _ in range(5):
            if story is inside:
                call.seal(PNS, 1390)
            else:
                call.sequences[PNS] += 1
            call.story.wait(0.5)
            call.seal(PAC_ROLE)
    return inside, outside


@near_miss("mtu_black_hole")
def large_packets_flow() -> Story:
    call = up()
    return segment_again(call.story, call, doubling=False)


@trouble("malformed_gre")
def lengths_that_lie() -> Story:
    call = up()
    for _ in range(3):
        call.seal(PAC_ROLE, claims=900)
    return call.story


@trouble("malformed_gre")
def reserved_flags() -> Story:
    call = up()
    call.seal(PNS, flags=0x3089)
    return call.story


def wan_error(count: int) -> Story:
    call = up()
    call.tcp.say(SERVER, M.WAN_ERROR_NOTIFY, peer_call_id=1, crc_errors=count)
    return call.story


@trouble("wan_errors")
def a_bad_line() -> Story:
    return wan_error(12)


@near_miss("wan_errors")
def a_good_line_told() -> Story:
    return wan_error(0)


# Several calls, strays, the capture.


@trouble("wrong_call_id")
def untranslated() -> Story:
    call = dialled(ROUTER, call_id=5001)
    for at in range(5):
        call.ppp(PNS, LCP, s.REQUEST, s.option(5, b"\1\2\3\4"), identifier=at)
        body = s.ppp(LCP, s.control(s.REQUEST, at, s.option(5, b"\5\6\7\x08")))
        call.gre(PAC_ROLE, body, key=1)
        call.story.wait(3)
    return call.story


@near_miss("wrong_call_id")
def a_straggler_of_another_call() -> Story:
    call = up()
    call.gre(PAC_ROLE, b"\x00\xfd\x90\x00" + bytes(60), key=999, sequence=5, ack=0)
    call.sequences[PAC_ROLE] = 20
    return call.story


@trouble("wrong_source")
def gre_leaves_by_another_address() -> Story:
    call = dialled(ROUTER)
    for at in range(5):
        body = s.ppp(LCP, s.control(s.REQUEST, at, s.option(5, b"\1\2\3\4")))
        call.gre(PNS, body, source=Host("another address", bytes((198, 18, 7, 99))))
        call.story.wait(3)
    return call.story


@near_miss("wrong_source")
def another_client_with_gre_of_its_own() -> Story:
    call = up(call_id=1, answers=100)
    other = call.story.dial(BOB, SERVER, call_id=2, answers=101)
    other.link().prove().mppe().network().chat()
    return call.story


def two_calls(clients: tuple[Host, Host], numbers: tuple[int, int]) -> tuple[Call, Call]:
    story = Story()
    one = story.dial(clients[0], SERVER, call_id=numbers[0], answers=100)
    two = story.dial(clients[1], SERVER, call_id=numbers[1], answers=101)
    return one, two


@trouble("call_id_collision")
def two_clients_look_like_one() -> Story:
    one, two = two_calls((ROUTER, ROUTER), (7, 7))
    one.link().prove().network()
    two.link()
    return one.story


@near_miss("call_id_collision", "mixed_up_calls")
def two_clients_with_one_number_behind_a_good_nat() -> Story:
    one, two = two_calls((ALICE, BOB), (7, 7))
    for call in (one, two):
        call.link().prove().mppe().network().chat()
    return one.story


@trouble("mixed_up_calls")
def one_gets_what_is_for_both() -> Story:
    one, two = two_calls((ALICE, BOB), (7, 7))
    one.link().prove().mppe().network().chat(10)
    for at in range(6):
        two.ppp(PNS, LCP, s.REQUEST, s.option(5, b"\1\2\3\4"), identifier=at)
        # What the server answers Bob comes to Alice, numbered as Bob's.
        body = s.ppp(LCP, s.control(s.REQUEST, at, s.option(5, b"\5\6\7\x08")))
        one.gre(PAC_ROLE, body, sequence=at, ack=0)
        two.story.wait(3)
    return one.story


@trouble("captured_twice")
def a_bridge_and_its_port() -> Story:
    story = up().story
    story.packets = [(time + at * 1e-5, packet) for time, packet in story.packets for at in (0, 1)]
    return story


@near_miss("captured_twice")
def captured_once() -> Story:
    return up().story


@trouble("no_control_connection")
def gre_without_its_control_connection() -> Story:
    story = up().chat(10).story
    story.packets = [each for each in story.packets if each[1][9] == 47]
    return story


@near_miss("no_control_connection", "no_pptp", "damaged_file", "cut_messages")
def gre_with_its_control_connection() -> Story:
    return up().story


@trouble("no_pptp")
def nothing_of_the_kind() -> Story:
    story = Story()
    story.put(ip_packet(ALICE.address, SERVER.address, 17, bytes(20)))
    return story


@trouble("healthy_call")
def a_call_as_it_should_be() -> Story:
    return up().hang_up().story


@near_miss("healthy_call")
def a_call_that_never_opens() -> Story:
    return dialled().link().story
