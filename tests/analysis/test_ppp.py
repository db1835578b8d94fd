"""What PPP says inside a call, read from stories, captures and other people's encoders."""

import pickle
import shutil
import subprocess
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers import ppp as scapy_ppp
from scapy.packet import Raw

from pptp_nat.analysis import ppp_wire as wire
from pptp_nat.analysis.packets import Evidence, GrePacket, Row, columns_of
from pptp_nat.analysis.ppp import Ppp, PppState
from pptp_nat.analysis.ppp_auth import Kind, authentication_packet
from pptp_nat.analysis.ppp_layers import terminate_reason
from pptp_nat.analysis.ppp_words import MS_ERRORS, code_name, mppe_name
from pptp_nat.core.messages import Role
from pptp_nat.lab.hdlc import checksum
from tests.analysis import story as s
from tests.analysis.fed import gre_packets, ppp_of, row
from tests.analysis.story import ALICE, CCP, CHAP, IPCP, LCP, PAC_ROLE, PNS, SERVER, Call, Story
from tests.core.pcap import FOLDER, packets
from tests.core.wire import ip_packet

NT_CLIENT = bytes((10, 1, 1, 11))
CAPTURES = [
    ("healthy_mppe-lan", bytes((192, 168, 77, 11))),
    ("healthy_mppe-lan", bytes((192, 168, 77, 12))),
    ("auth_fail_mschapv2-lan", bytes((192, 168, 77, 11))),
    ("auth_fail_mschapv2-wan", bytes((198, 18, 7, 1))),
    ("gre_blocked_inbound-lan", bytes((192, 168, 77, 11))),
    ("gre_blocked_inbound-wan", bytes((198, 18, 7, 1))),
    ("windows-nt-to-poptop-2000", NT_CLIENT),
]


def captured(name: str, pns: bytes) -> list[GrePacket]:
    """GRE between *pns* and its server in a shared capture; capture's own repeats left out."""
    return gre_packets(
        [each for each in packets(name) if pns in (each[1][12:16], each[1][16:20])], pns
    )


def told(call: Call) -> Ppp:
    return ppp_of(gre_packets(call.story.packets, ALICE.address))


def dialled() -> Call:
    return Story().dial(ALICE, SERVER)


def states(ppp: Ppp) -> list[str]:
    return [phase.state.value for phase in ppp.phases]


# A call from end to end.


def test_a_call_goes_through_the_phases_of_rfc_1661() -> None:
    call = dialled().link().prove("alice").mppe().network().chat()

    ppp = told(call.hang_up())

    assert states(ppp) == ["establish", "authenticate", "network", "opened", "terminated"]
    assert not ppp.under_way
    assert ppp.encryption == "MPPE 128 stateless"
    assert (ppp.address(PNS), ppp.address(PAC_ROLE)) == ("10.9.9.2", "10.9.9.1")
    assert ppp.ipcp.sides[PNS].agreed == {"address": "10.9.9.2", "DNS": "10.9.9.53"}
    proof = ppp.authentications[PAC_ROLE]
    assert (proof.protocol, proof.name, proof.outcome) == ("MS-CHAP v2", "alice", Kind.SUCCESS)
    assert proof.authenticator_name == "pptpd"
    assert [reason for _, _, reason in ppp.lcp.terminations] == ["User request"]
    assert ppp.last_heard[PAC_ROLE].said == "LCP Terminate-Ack"


def test_without_authentication_the_network_comes_next() -> None:
    assert states(told(dialled().link(b"").network())) == ["establish", "network", "opened"]


def test_phases_begin_with_the_packet_that_brings_them() -> None:
    call = dialled()
    begun = call.story.now
    call.link().story.wait(5)
    call.prove()

    ppp = told(call)

    times = [round(phase.begin.time - begun, 3) for phase in ppp.phases]
    assert times == [0.01, 0.04, 5.07]


@pytest.mark.parametrize(("number", "words"), MS_ERRORS.items())
def test_a_failure_has_its_number_and_the_number_has_words(number: int, words: str) -> None:
    text = f"E={number} R=0 C=bf5e9b69095b823f0e929fab7cb875eb V=3 M=Go away"

    proof = told(dialled().link().prove("bob", failure=text)).authentications[PAC_ROLE]

    assert (proof.outcome, proof.error, proof.may_retry) == (Kind.FAILURE, number, False)
    assert (proof.message, proof.name) == ("Go away", "bob")
    assert words


def test_a_second_try_may_succeed() -> None:
    call = dialled().link().prove("bob", failure="E=691 R=1 C=00 V=3 M=no").prove("bob")

    ppp = told(call)

    proof = ppp.authentications[PAC_ROLE]
    assert (proof.failures, proof.outcome, proof.error) == (1, Kind.SUCCESS, None)
    assert ppp.state is PppState.NETWORK


def test_a_nak_says_what_would_rather_be_had_and_a_reject_what_not_at_all() -> None:
    call = dialled()
    call.ppp(PAC_ROLE, LCP, s.REQUEST, s.option(3, s.CHAP_MD5) + s.option(8))
    call.ppp(PNS, LCP, s.NAK, s.option(3, s.MS_CHAP_2))
    call.ppp(PNS, LCP, s.REJECT, s.option(8))

    side = told(call).lcp.sides[PAC_ROLE]

    assert side.asked == {"authentication": "CHAP (MD5)", "ACFC": ""}
    assert side.suggested == {"authentication": "MS-CHAP v2"}
    assert side.rejected == ["ACFC"]
    assert side.agreed is None


def test_a_request_repeated_after_its_ack_has_gone_past_is_a_sign_of_deafness() -> None:
    call = dialled()
    for _ in range(4):
        call.ppp(PNS, LCP, s.REQUEST, s.option(1, b"\x05\x78"), identifier=1)
        call.ppp(PAC_ROLE, LCP, s.ACKED, s.option(1, b"\x05\x78"), identifier=1)

    side = told(call).lcp.sides[PNS]

    assert (side.requests, side.repeated_after_ack) == (4, 3)


def test_lcp_that_begins_anew_leaves_nothing_of_the_old_link() -> None:
    call = dialled().link().prove("first").network().link(s.CHAP_MD5)

    ppp = told(call)

    assert ppp.state is PppState.AUTHENTICATE
    assert ppp.wanted_authentication(PAC_ROLE) == "CHAP (MD5)"
    assert ppp.authentications[PAC_ROLE].name == ""


def test_a_late_repeat_of_an_agreed_request_does_not_begin_anew() -> None:
    call = dialled().link().prove().network()
    repeat = next(p for _, p in call.story.packets if p[9] == 47 and p[12:16] == ALICE.address)
    call.story.put(repeat)

    assert told(call).state is PppState.OPENED


def test_refused_protocols_are_told_with_who_refused() -> None:
    call = dialled().link(b"")
    call.agree(CCP, {})
    call.ppp(PNS, CCP, s.REQUEST, s.option(18, s.STATELESS_128))
    call.ppp(PAC_ROLE, LCP, s.PROTOCOL_REJECT, b"\x80\xfd" + s.control(1, 2))

    ppp = told(call)

    assert ppp.ccp.rejected_by is PAC_ROLE
    assert 0x80FD in ppp.rejected
    assert ppp.log[-1].said == "LCP Protocol-Reject: CCP"


def test_resets_and_echoes_are_counted_by_sender() -> None:
    call = dialled().link(b"").mppe(b"\x00\x00\x00\x20").network()
    call.ppp(PNS, CCP, s.RESET).ppp(PNS, CCP, s.RESET).ppp(PAC_ROLE, LCP, s.ECHO, bytes(4))
    call.ppp(PNS, LCP, s.ECHO_REPLY, bytes(4))

    ppp = told(call)

    assert ppp.ccp.resets == {PNS: 2, PAC_ROLE: 0}
    assert ppp.lcp.echoes == {PNS: 0, PAC_ROLE: 1}
    assert ppp.lcp.echo_replies == {PNS: 1, PAC_ROLE: 0}
    assert ppp.encryption == "MPPE 40"


def test_a_call_under_way_is_open_as_soon_as_data_is_seen() -> None:
    call = dialled()
    call.gre(PNS, s.ppp(s.IP, s.echo_request()))

    ppp = told(call)

    assert (ppp.state, ppp.under_way) == (PppState.OPENED, True)


def test_encrypted_data_of_a_call_under_way_comes_late_and_counts_as_first() -> None:
    call = dialled().chat(3)
    rows = [row(packet) for packet in gre_packets(call.story.packets, ALICE.address)]
    call.ppp(PNS, LCP, s.TERMINATE, b"bye")
    ppp = ppp_of(gre_packets(call.story.packets, ALICE.address)[-1:])

    ppp.feed_data(PNS, columns_of(rows))

    assert states(ppp) == ["opened", "terminated"]
    assert ppp.under_way


# MPPE's header.


def sealed(*counts: int, form: str = "00fd", flushed: bool = True) -> list[Row]:
    heads = [f"{form}{(0x9000 if flushed else 0x1000) | count:04x}" for count in counts]
    return [
        (float(at), at, 60, at, -1, int((head + "0000")[:8], 16)) for at, head in enumerate(heads)
    ]


@pytest.mark.parametrize("form", ["00fd", "fd"])
def test_coherency_counts_passed_over_are_counted_across_batches(form: str) -> None:
    ppp = Ppp()
    ppp.feed_data(PNS, columns_of(sealed(4094, 4095, 0, form=form)))
    ppp.feed_data(PNS, columns_of(sealed(1, 4, form=form, flushed=False)))

    data = ppp.data[PNS]

    assert (data.sealed, data.coherency_lost, data.flushed) == (5, 2, 3)


def test_encrypted_data_behind_a_whole_header_is_counted_too() -> None:
    ppp = Ppp()
    ppp.feed_data(
        PNS, columns_of([(1.0, 1, 60, 1, -1, 0xFF0300FD), (2.0, 2, 60, 2, -1, 0xFF03C021)])
    )

    assert ppp.data[PNS].sealed == 1


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0x01000040, "MPPE 128 stateless"), (0x000000E0, "MPPE 40/56/128"),
        (0x00000021, "MPPE 40 with MPPC"), (1, "MPPC"), (0, "no encryption"),
    ],
)  # fmt: skip
def test_mppe_bits_have_words(bits: int, words: str) -> None:
    assert mppe_name(bits) == words


# Every form that a frame may have.


def stuffed(body: bytes, *, flags: bool = True) -> bytes:
    """RFC 1662, written out here once more."""
    body += (checksum(body) ^ 0xFFFF).to_bytes(2, "little")
    octets = b"".join(
        bytes((0x7D, each ^ 0x20)) if each < 0x20 or each in (0x7D, 0x7E) else bytes((each,))
        for each in body
    )
    return b"\x7e" + octets + b"\x7e" if flags else octets


@given(
    st.sampled_from([0x0021, 0x0057, 0x00FD, 0x8021, 0x80FD, 0xC021, 0xC223]),
    st.binary(max_size=60), st.sets(st.sampled_from(["address", "short"])),
    st.sampled_from(["plain", "flags", "escapes"]),
)  # fmt: skip
def test_every_form_of_a_header_carries_the_same_frame(
    protocol: int, body: bytes, header: set[str], form: str
) -> None:
    is_short = "short" in header and protocol < 0x100
    has_address = "address" in header or form == "escapes"
    octets = b"\xff\x03" * has_address + protocol.to_bytes(1 if is_short else 2, "big") + body
    if form != "plain":
        octets = stuffed(octets, flags=form == "flags")

    frame = wire.frame(octets)

    assert frame is not None
    assert (frame.protocol, frame.information) == (protocol, body)
    assert (frame.has_address, frame.has_short_protocol) == (has_address, is_short)
    assert frame.is_escaped == (form != "plain")


@given(st.binary(max_size=80))
def test_no_octets_upset_the_reader(octets: bytes) -> None:
    ppp = Ppp()
    for start in (b"", b"\xff\x03\xc0\x21\x01", b"\xc2\x23\x02", b"\xc2\x27\x01\x01\x00\x20",
                  b"\xff\x7d", b"\x00\x21E", b"\xc0\x21\x05\x01\x00\x30"):  # fmt: skip
        for sender in Role:
            payload = start + octets
            ppp.feed(
                GrePacket(
                    Evidence(0, 1, 1.0), sender, 1, 0x3001, 200, 200, 1, None, payload, 240, 0
                )
            )

    assert len(ppp.log) <= 14


@given(st.integers(0, 300))
@settings(max_examples=5)
def test_memory_does_not_grow_with_a_call_that_never_stops_talking(seed: int) -> None:
    ppp = Ppp()
    for at in range(2000):
        information = s.control(
            1 + (at + seed) % 15, at & 255, s.option(seed & 255, bytes(at % 40))
        )
        protocol = (LCP, IPCP, CCP, 0x8000 + 2 * at + 1)[at % 4]
        payload = s.ppp(protocol, information)
        ppp.feed(
            GrePacket(Evidence(0, at, at / 10), PNS, 1, 0x3001, 90, 90, at, None, payload, 90, 0)
        )

    assert len(pickle.dumps(ppp)) < 100_000


# Others' encoders and decoders.


@pytest.mark.parametrize("code", range(1, 12))
def test_scapy_s_lcp_packets_are_read(code: int) -> None:
    built = bytes(scapy_ppp.PPP() / scapy_ppp.PPP_LCP(code=code, id=7) / Raw(b"\x00\x01\x02\x03"))
    frame = wire.frame(built)
    assert frame is not None
    packet = wire.control_packet(frame.information)

    assert packet is not None
    assert (frame.protocol, packet.code, packet.identifier) == (wire.LCP, code, 7)
    theirs = scapy_ppp.PPP_LCP.fields_desc[0].i2s[code]
    assert code_name(code)[:7].lower() == theirs.replace("Configuration", "Configure")[:7].lower()


def test_scapy_s_configuration_options_are_read() -> None:
    options = [
        scapy_ppp.PPP_LCP_MRU_Option(max_recv_unit=1400),
        scapy_ppp.PPP_LCP_ACCM_Option(accm=0x000A0000),
        scapy_ppp.PPP_LCP_Auth_Protocol_Option(auth_protocol=0xC223, algorithm=0x81),
        scapy_ppp.PPP_LCP_Magic_Number_Option(magic_number=0x12345678),
    ]
    built = bytes(scapy_ppp.PPP() / scapy_ppp.PPP_LCP_Configure(code=1, id=1, options=options))
    ppp = Ppp()
    ppp.feed(GrePacket(Evidence(0, 1, 1.0), PNS, 1, 0x3001, 90, 90, 1, None, built, 90, 0))

    assert ppp.lcp.sides[PNS].asked == {
        "MRU": "1400", "ACCM": "0x000a0000", "authentication": "MS-CHAP v2", "magic": "0x12345678",
    }  # fmt: skip


def test_scapy_s_pap_request_gives_the_name_and_never_the_password() -> None:
    request = scapy_ppp.PPP_PAP_Request(id=1, username="alice", password="hunter2")
    packet = authentication_packet(wire.PAP, bytes(request))

    assert packet is not None
    assert (packet.kind, packet.name) == (Kind.REQUEST, "alice")
    assert "hunter2" not in repr(packet)


@pytest.mark.parametrize(("name", "pns"), CAPTURES)
def test_tshark_reads_the_same_frames(name: str, pns: bytes) -> None:
    """Frame numbers, protocols and codes of all that PPP controls, by another reader."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    client = ".".join(map(str, pns))
    lines = subprocess.run(
        ["tshark", "-r", FOLDER / f"{name}.pcap", "-Y", f"gre && ppp && ip.addr == {client}",
         "-T", "fields", "-E", "separator=;", "-e", "frame.number", "-e", "ppp.protocol",
         "-e", "ppp.code", "-e", "chap.code"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    theirs = Counter()
    for line in lines:
        _, protocol, code, chap = line.split(";")
        if protocol and int(protocol, 16) >= 0x8000:
            theirs[int(protocol, 16), int(code or chap)] += 1
    mine = Counter()
    for packet in captured(name, pns):
        frame = wire.frame(packet.payload)
        if frame is not None and frame.protocol >= 0x8000:
            mine[frame.protocol, frame.information[0]] += 1

    assert mine == theirs
    assert mine


# The shared captures.


def test_two_clients_with_one_number_each_get_an_address_and_encryption() -> None:
    for last, address in ((11, "10.0.0.101"), (12, "10.0.0.102")):
        ppp = ppp_of(captured("healthy_mppe-lan", bytes((192, 168, 77, last))))

        assert ppp.address(PNS) == address
        assert ppp.encryption == "MPPE 128 stateless"
        assert ppp.reached(PppState.OPENED)
        assert ppp.authentications[PAC_ROLE].name == f"u{last - 10}"


@pytest.mark.parametrize("side", ["lan", "wan"])
def test_a_wrong_password_is_code_691_on_both_sides_of_the_router(side: str) -> None:
    pns = dict(CAPTURES)[f"auth_fail_mschapv2-{side}"]

    ppp = ppp_of(captured(f"auth_fail_mschapv2-{side}", pns))

    proof = ppp.authentications[PAC_ROLE]
    assert (proof.name, proof.error, proof.message) == ("u1", 691, "Access denied")
    assert states(ppp) == ["establish", "authenticate", "terminated"]
    assert ppp.lcp.terminations[0][2] == "Failed to authenticate ourselves to peer"


def test_blocked_gre_is_one_way_here_and_deafness_there() -> None:
    lan = ppp_of(captured("gre_blocked_inbound-lan", bytes((192, 168, 77, 11))))
    wan = ppp_of(captured("gre_blocked_inbound-wan", bytes((198, 18, 7, 1))))

    assert lan.last_heard.keys() == {PNS}
    assert lan.lcp.sides[PNS].unanswered == lan.lcp.sides[PNS].requests > 10
    assert wan.lcp.sides[PNS].repeated_after_ack > 10


def test_windows_nt_asks_for_a_callback_and_multilink() -> None:
    side = ppp_of(captured("windows-nt-to-poptop-2000", NT_CLIENT)).lcp.sides[PNS]

    assert {"callback": "operation 6", "MRRU": "1614", "endpoint": ""}.items() <= side.asked.items()


# Secrets.


@pytest.mark.parametrize(("name", "pns"), CAPTURES)
def test_no_challenge_response_or_hash_outlives_the_reading(name: str, pns: bytes) -> None:
    frames = [wire.frame(packet.payload) for packet in captured(name, pns)]
    secrets = []
    for frame in frames:
        if frame is not None and frame.protocol == CHAP:
            packet = wire.control_packet(frame.information)
            assert packet is not None
            if packet.code in (1, 2):
                secrets.append(packet.data[1 : 1 + packet.data[0]])
            else:
                secrets += [part[2:] for part in packet.data.split() if part[:2] in (b"S=", b"C=")]

    left = pickle.dumps(ppp_of(captured(name, pns)))

    for secret in secrets:
        assert len(secret) >= 16
        assert secret not in left
        assert secret.hex().encode() not in left


@given(
    st.text("0123456789abcdefABCDEF", min_size=16, max_size=40),
    st.sampled_from(["E=691 R=1 C={} V=3 M=no", "E=691 M=no C={}", "S={}", "S={} M=yes",
                     "E=648 R=0 C={} V=3", "M=S={} C={}"]),
    st.sampled_from([3, 4]),
)  # fmt: skip
def test_hashes_in_a_verdict_are_left_out_wherever_they_stand(
    secret: str, form: str, code: int
) -> None:
    packet = authentication_packet(
        wire.CHAP, s.control(code, 1, form.format(secret, secret).encode())
    )

    assert packet is not None
    assert secret not in repr(packet)


def test_eap_names_the_method_and_what_the_other_would_rather_have() -> None:
    nak = authentication_packet(wire.EAP, s.control(2, 1, bytes((3, 26, 25))))
    identity = authentication_packet(wire.EAP, s.control(2, 1, b"\x01alice"))
    failure = authentication_packet(
        wire.EAP, s.control(1, 1, b"\x1a\x04\x01\x00\x30E=691 R=0 C=" + b"a" * 32 + b" V=3 M=no")
    )

    assert nak is not None
    assert nak.wants == ("MS-CHAP v2", "PEAP")
    assert identity is not None
    assert identity.name == "alice"
    assert failure is not None
    assert (failure.kind, failure.error, failure.method) == (Kind.FAILURE, 691, "MS-CHAP v2")


def test_names_of_peers_are_fit_for_a_terminal() -> None:
    packet = authentication_packet(
        wire.CHAP, s.control(1, 1, b"\x01x" + b"\x1b[31mred\x00\xff" * 40)
    )

    assert packet is not None
    assert packet.name.isprintable()
    assert len(packet.name) <= 81


def test_windows_gives_its_reason_as_a_number() -> None:
    assert "742" in terminate_reason(b"\x11\x22\x33\x44\x00<\xcdt\x00\x00\x02\xe6")
    assert terminate_reason(b"") == ""


# A tunnel in the tunnel.


@pytest.mark.parametrize(
    ("protocol", "body", "is_tunnel"),
    [(47, bytes(20), True), (6, b"\x9c\x40\x06\xbb" + bytes(16), True),
     (6, b"\x9c\x40\x01\xbb" + bytes(16), False), (17, bytes(20), False)],
)  # fmt: skip
def test_pptp_inside_the_tunnel_is_told_with_where_it_goes(
    *, protocol: int, body: bytes, is_tunnel: bool
) -> None:
    call = dialled().link(b"").network()
    inner = ip_packet(bytes((10, 9, 9, 2)), SERVER.address, protocol, body)
    call.gre(PNS, s.ppp(s.IP, inner))

    ppp = told(call)

    assert bool(ppp.inner_tunnels) == is_tunnel
    if is_tunnel:
        assert set(ppp.inner_tunnels) == {(PNS, "198.18.7.2")}
