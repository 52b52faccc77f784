"""Laws of the parser of PROXY headers (C40)."""

import ipaddress
import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from svcrun._net.proxy_header import (
    MAX_LINE,
    MAX_SIZE,
    Malformed,
    ProxyHeader,
    parse_proxy_header,
)
from tests.proxies import HEADERS, LOCAL, SIGNATURE, fixed, v1, v2
from tests.support import examples

VERSIONS = ("v1", "v2", "any")

headers = pytest.mark.parametrize(
    ("header", "client"), [pytest.param(*case, id=name) for name, case in HEADERS.items()]
)


@headers
def test_a_header_ends_at_its_last_byte_and_names_the_client(header: bytes, client: Any) -> None:
    for rest in (b"", b"\x16\x03\x01", header):
        assert parse_proxy_header(header + rest, "any") == (len(header), client)


@headers
def test_each_prefix_of_a_header_needs_more_bytes(header: bytes, client: Any) -> None:
    for size in range(len(header)):
        assert parse_proxy_header(header[:size], "any") is None


@pytest.mark.parametrize("name", HEADERS)
def test_a_version_that_is_not_accepted_is_refused_at_its_first_byte(name: str) -> None:
    header, client = HEADERS[name]
    own, other = name[:2], {"v1": "v2", "v2": "v1"}[name[:2]]
    assert parse_proxy_header(header, own) == (len(header), client)
    assert isinstance(parse_proxy_header(header, other), Malformed)
    assert isinstance(parse_proxy_header(header[:1], other), Malformed)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2",
        b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 ",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1",
        b"PROXY TCP4\t192.0.2.1 192.0.2.2 1 2",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 1",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 00 2",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 2",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 \xd9\xa1 2",
        b"PROXY TCP4 192.0.2.1 192.0.2.2  2",
        b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2",
        b"PROXY TCP4 192.0.2 192.0.2.2 1 2",
        b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2",
        b"PROXY TCP4 0xc0000201 192.0.2.2 1 2",
        b"PROXY TCP4 192.0.2.1\0 192.0.2.2 1 2",
        b"PROXY TCP4 192.0.2.1 example.com 1 2",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2",
        b"PROXY TCP6 2001:db8::1 192.0.2.2 1 2",
        b"PROXY TCP6 2001:db8:::1 ::1 1 2",
        b"PROXY TCP6 [2001:db8::1] ::1 1 2",
        b"PROXY TCP6 fe80::1%lo ::1 1 2",
        b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2",
        b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2",
        b"PROXY UNKNOWN\t192.0.2.1",
        b"PROXY UNKNOWNS",
        b"PROXY unknown",
        b"PROXY \xff",
        b"PROXY ",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r",
    ],
)
def test_a_line_in_another_format_is_malformed(line: bytes) -> None:
    assert isinstance(parse_proxy_header(line + b"\r\n", "any"), Malformed)


@pytest.mark.parametrize("line", [b"PROXY UNKNOWN", v1(("192.0.2.1", 1))[:-2]])
@pytest.mark.parametrize("end", [b"\n", b"\rX\n", b"\r\r\n", b"\n\r\n", b"\nGET / HTTP/1.1\r\n"])
def test_only_crlf_ends_a_line(line: bytes, end: bytes) -> None:
    found = parse_proxy_header(line + end, "any")
    assert isinstance(found, Malformed)
    assert "CRLF" in found.reason


def test_a_line_has_at_most_107_bytes() -> None:
    line = b"PROXY UNKNOWN ".ljust(MAX_LINE - 2, b"x")
    assert parse_proxy_header(line + b"\r\n", "any") == (107, None)
    assert parse_proxy_header(line + b"x", "any") is None
    assert isinstance(parse_proxy_header(line + b"xx", "any"), Malformed)
    assert isinstance(parse_proxy_header(line + b"x\r\n", "any"), Malformed)


@pytest.mark.parametrize("command", sorted(set(range(256)) - {0x20, 0x21}))
def test_another_version_or_command_is_refused(command: int) -> None:
    header = v2(("192.0.2.1", 1), command=command)
    assert isinstance(parse_proxy_header(header[:16], "any"), Malformed)


@pytest.mark.parametrize("kind", range(256))
def test_another_family_or_transport_is_refused_unless_the_header_is_local(kind: int) -> None:
    is_known = kind >> 4 <= 3 and kind & 15 <= 2
    header = fixed(0x21, kind, 216) + b"\0" * 216
    assert isinstance(parse_proxy_header(header, "any"), ProxyHeader) == is_known
    assert parse_proxy_header(fixed(0x20, kind, 216) + b"\0" * 216, "any") == (232, None)


@pytest.mark.parametrize(("kind", "size"), [(0x11, 12), (0x21, 36), (0x31, 216)])
def test_a_length_without_room_for_the_addresses_is_refused_before_they_arrive(
    kind: int, size: int
) -> None:
    assert isinstance(parse_proxy_header(fixed(0x21, kind, size - 1), "any"), Malformed)
    assert parse_proxy_header(fixed(0x21, kind, size), "any") is None


def test_a_header_of_more_than_16_kib_is_refused_before_it_arrives() -> None:
    for command in (0x20, 0x21):
        assert parse_proxy_header(fixed(command, 0x11, MAX_SIZE - 16), "any") is None
        refused = parse_proxy_header(fixed(command, 0x11, MAX_SIZE - 15), "any")
        assert isinstance(refused, Malformed)
        assert "16385 bytes" in refused.reason


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0", b"SSH-2.0-x\r\n", b"\0", b"proxy UNKNOWN"],
)
def test_other_protocols_are_refused_by_their_first_bytes(data: bytes, version: str) -> None:
    found = parse_proxy_header(data, version)
    assert isinstance(found, Malformed)
    assert repr(data[:16]) in found.reason
    assert parse_proxy_header(b"", version) is None


def test_the_address_of_a_client_is_in_its_canonical_form() -> None:
    line = b"PROXY TCP6 2001:0DB8:0:0:0:0:0:1 0:0:0:0:0:0:0:1 1 2\r\n"
    assert parse_proxy_header(line, "v1") == (len(line), ("2001:db8::1", 1, 0, 0))


# Random data.

ADDRESSES = st.one_of(
    st.tuples(st.ip_addresses().map(str), st.integers(0, 65535)),
    st.text("abcdefghij/.-_", max_size=107),
)
_WORDS = (
    *(b"PROXY ", b"TCP4", b"TCP6", b"UNKNOWN", b" ", b"1.2.3.4", b"::1", b"80", b"\r", b"\n"),
    *(SIGNATURE, b"\x20", b"\x21", b"\x11", b"\x31", b"\0\x0c", b"\0\xd8", b"\0" * 12),
)
DATA = st.one_of(
    st.binary(max_size=300),
    st.lists(st.one_of(st.sampled_from(_WORDS), st.binary(max_size=4))).map(b"".join),
    st.binary(max_size=300).map(lambda rest: b"PROXY TCP4 " + rest),
    st.binary(max_size=300).map(lambda rest: SIGNATURE + rest),
    st.binary(max_size=300).map(lambda rest: fixed(0x21, 0x11, 12) + rest),
)


@given(data=DATA, version=st.sampled_from(VERSIONS))
@settings(max_examples=examples(1000))
def test_any_data_has_one_of_the_three_outcomes_that_more_data_does_not_change(
    data: bytes, version: str
) -> None:
    outcomes = [parse_proxy_header(data[:size], version) for size in range(len(data) + 1)]
    found = next((one for one in outcomes if one is not None), None)
    if isinstance(found, ProxyHeader):
        assert found.size == outcomes.index(found)
        assert outcomes[found.size :] == [found] * (len(data) + 1 - found.size)
    elif found is not None:
        assert all(isinstance(one, Malformed) for one in outcomes[outcomes.index(found) :])
    else:
        assert len(data) < MAX_SIZE


def same(address: Any) -> Any:
    """Return an address in the form that both parsers can be compared by."""
    if isinstance(address, tuple):  # the socket module writes ::ffff:c000:201 as ::ffff:192.0.2.1
        return (ipaddress.ip_address(address[0]), *address[1:])
    path = address.decode() if isinstance(address, bytes) else address
    return path[:1] + path[1:].partition("\0")[0]  # the library keeps bytes after the path


@given(client=ADDRESSES, rest=st.binary(max_size=40))
@settings(max_examples=examples(300))
def test_the_library_proxy_protocol_packs_headers_that_are_parsed_to_the_same_client(
    client: Any, rest: bytes
) -> None:
    result = pytest.importorskip("proxyprotocol.result")
    packers = [pytest.importorskip("proxyprotocol.v2").ProxyProtocolV2()]
    options: dict[str, Any] = {"protocol": socket.SOCK_STREAM}
    if isinstance(client, str):
        packed: Any = result.ProxyResultUnix(client, "/run/server", **options)
    else:
        host = ipaddress.ip_address(client[0])
        kind = result.ProxyResultIPv4 if host.version == 4 else result.ProxyResultIPv6
        packed = kind((host, client[1]), (host, 443), **options)
        packers.append(pytest.importorskip("proxyprotocol.v1").ProxyProtocolV1())
    for packer in packers:
        header = packer.pack(packed)
        found = parse_proxy_header(header + rest, "any")
        assert isinstance(found, ProxyHeader)
        assert (found.size, same(found.client)) == (len(header), same(packed.peername))


@given(name=st.sampled_from([*HEADERS]), at=st.integers(0, 250), byte=st.binary(max_size=2))
@settings(max_examples=examples(1000))
def test_the_library_proxy_protocol_agrees_on_the_client_of_each_header_that_is_accepted(
    name: str, at: int, byte: bytes
) -> None:
    detect = pytest.importorskip("proxyprotocol.detect").ProxyProtocolDetect()
    whole = HEADERS[name][0]
    header = whole[:at] + byte + whole[at + 1 :]
    found = parse_proxy_header(header, "any")
    if isinstance(found, ProxyHeader) and found.client is not None:
        try:
            unpacked = detect.unpack(header[: found.size])
        except (ValueError, struct.error):
            return  # it reads TLVs, and refuses paths beyond ASCII
        assert same(unpacked.peername) == same(found.client)


def test_a_health_check_has_a_header_without_a_client() -> None:
    assert parse_proxy_header(LOCAL, "v2") == (16, None)
