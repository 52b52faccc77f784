"""Laws of UDP servers with multicast groups, broadcasts and Unix sockets (C42)."""

import asyncio
import copy
import errno
import logging
import os
import pickle
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from svcrun import entrypoint
from svcrun.service import UDPServer
from tests.service.activation import PRELUDE, activated
from tests.service.datagrams import running
from tests.support import PATIENCE, LoopFactory, Program, eventually, refuses

# Tests run in several processes at the same time.
GROUP = f"239.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
OTHER = f"239.78.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
LOCAL = "127.0.0.1"
# Datagrams to it stay within the machine.
GROUP6 = "ff01::7712"


class Collector(UDPServer):
    """A server that keeps what it receives."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.got: list[bytes] = []
        self.senders: list[Any] = []

    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        self.got.append(data)
        self.senders.append(addr)


def send(data: bytes, port: int | None, group: str = GROUP) -> None:
    """Send a datagram to a group on the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOCAL))
        sock.sendto(data, (group, port))


def members() -> set[str]:
    """Return the IPv4 groups that programs of this machine have joined."""
    found = set()
    for line in Path("/proc/net/igmp").read_text(encoding="ascii").splitlines()[1:]:
        if line.startswith("\t"):
            number = int(line.split()[0], 16)
            found.add(socket.inet_ntoa(struct.pack("=I", number)))
    return found


@pytest.fixture
def interface6() -> tuple[str, str]:
    """The name and an IPv6 address of an interface that sends multicast datagrams to itself."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("there is no IPv6")
    for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
        packed, index, _, _, _, name = line.split()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, int(index, 16))
            try:
                sock.sendto(b"", (GROUP6, 9, 0, int(index, 16)))
            except OSError:
                continue
        return name, str(ip_address(bytes.fromhex(packed)))
    pytest.skip("no interface sends IPv6 multicast datagrams")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", GROUP], ids=["IPv4", "IPv6", "the group"])
@pytest.mark.parametrize(
    "group",
    [(GROUP, LOCAL), [GROUP, "lo"], (ip_address(GROUP), socket.if_nametoindex("lo"))],
    ids=["by its address", "by its name", "by its index"],
)
async def test_a_datagram_to_a_group_arrives_on_the_named_interface(
    address: str, group: Any
) -> None:
    async with running(server := Collector(address, 0, groups=[group])):
        send(b"to all", server.port)
        await eventually(lambda: server.got == [b"to all"])


async def test_a_server_receives_no_groups_of_other_programs() -> None:
    """Linux delivers the groups of all programs to a socket, unless it is told otherwise."""
    async with (
        running(server := Collector("0.0.0.0", 0, groups=[(GROUP, LOCAL)])),
        running(Collector("0.0.0.0", 0, groups=[(OTHER, LOCAL)])),
    ):
        send(b"other", server.port, OTHER)
        send(b"own", server.port)
        await eventually(lambda: server.got)
    assert server.got == [b"own"]


@pytest.mark.parametrize("form", ["name", "index", "scope", "address", "scope of the address"])
async def test_a_group_of_ipv6_is_joined_on_the_named_interface(
    interface6: tuple[str, str], form: str
) -> None:
    name, address = interface6
    index = socket.if_nametoindex(name)
    group: Any = {
        "name": (GROUP6, name),
        "index": (GROUP6, index),
        "scope": f"{GROUP6}%{name}",
        "address": (GROUP6, address),
        "scope of the address": (GROUP6, f"{address}%{name}"),
    }[form]
    async with running(server := Collector("::", 0, groups=[group])):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.sendto(b"six", (GROUP6, server.port, 0, index))
        await eventually(lambda: server.got == [b"six"])


async def test_several_groups_are_joined_and_all_are_left_at_the_stop() -> None:
    groups = [(GROUP, LOCAL), (OTHER, LOCAL), (GROUP, "lo"), (GROUP, LOCAL)]
    server = Collector("0.0.0.0", 0, groups=groups)
    for _ in range(3):
        async with running(server):
            assert {GROUP, OTHER} <= members()
            send(b"one", server.port)
            send(b"two", server.port, OTHER)
            await eventually(lambda: server.got == [b"one", b"two"])
        assert not members() & {GROUP, OTHER}
        server.got.clear()


def test_a_passed_socket_leaves_its_groups_at_the_stop(
    run_program: Callable[..., Program],
) -> None:
    source = f"""
class Server(Datagrams):
    groups = [("239.77.9.9", "{LOCAL}")]

def is_member():
    with open("/proc/net/igmp") as file:
        return "09094DEF" in file.read()

server = Server(sock="fd:group")
for _ in range(2):
    with entrypoint(server):
        print(is_member())
    print(is_member())
"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        outcome = activated(run_program, PRELUDE + source, sock, names="group").wait()
    assert outcome.stdout.split() == ["True", "False"] * 2, outcome.stderr


def test_a_passed_socket_leaves_the_groups_that_a_killed_process_has_joined(
    run_program: Callable[..., Program],
) -> None:
    source = f"""
class Server(Datagrams):
    groups = [("239.77.9.8", "{LOCAL}")]

with entrypoint(Server(sock="fd:group")) as loop:
    print("joined", flush=True)
    loop.run_forever()
"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        program = activated(run_program, PRELUDE + source, sock, names="group")
        program.wait_for_line("joined")
        program.kill()
        assert "239.77.9.8" in members()
        program = activated(run_program, PRELUDE + source, sock, names="group")
        program.wait_for_line("joined")
        program.terminate()
        program.wait()
        assert "239.77.9.8" not in members()


def test_a_group_that_can_not_be_joined_fails_the_start_and_leaves_nothing(
    loop_factory: LoopFactory, no_leaks: None
) -> None:
    server = Collector("0.0.0.0", 0, name="g", groups=[(GROUP, LOCAL), (OTHER, "192.0.2.99")])
    with (
        pytest.raises(OSError, match="could not join") as caught,
        entrypoint(server, loop_factory=loop_factory),
    ):
        pass
    assert caught.value.errno == errno.ENODEV
    assert str(caught.value) == (
        f"[Errno {errno.ENODEV}] <Collector name='g' STARTING>: could not join the group {OTHER} "
        "on the interface 192.0.2.99: No such device; name an interface of this machine, as in "
        "(group, interface)"
    )
    assert not members() & {GROUP, OTHER}
    assert (server.address, server.port) == ("0.0.0.0", 0)


@pytest.mark.parametrize("interface", ["nowhere0", "x" * 300, 2**31 - 1, "é"])
async def test_an_interface_that_does_not_exist_is_named_by_the_error(interface: Any) -> None:
    server = Collector("0.0.0.0", 0, groups=[(GROUP, interface)])
    with pytest.raises(OSError, match=f"{GROUP} on the interface {interface}: "):
        await server.start()
    assert server.socket is None


async def test_an_interface_of_ipv6_that_does_not_exist_is_named_by_the_error() -> None:
    for interface in ("2001:db8::1", "fe80::1%nowhere0"):
        server = Collector("::", 0, groups=[(GROUP6, interface)])
        with pytest.raises(OSError, match=f"{GROUP6} on the interface {interface}: "):
            await server.start()


async def test_each_of_two_servers_that_share_a_port_receives_each_datagram() -> None:
    """C24: they share it on purpose."""
    first = Collector("0.0.0.0", 0, groups=[(GROUP, LOCAL)], reuse_port=True)
    async with running(first):
        second = Collector("0.0.0.0", first.port, groups=[(GROUP, LOCAL)], reuse_port=True)
        async with running(second):
            for _ in range(3):
                send(b"both", first.port)
            await eventually(lambda: first.got == second.got == [b"both"] * 3)


async def test_two_servers_do_not_share_the_port_of_a_group_by_accident() -> None:
    """C24."""
    async with running(first := Collector("0.0.0.0", 0, groups=[(GROUP, LOCAL)])):
        second = Collector("0.0.0.0", first.port, groups=[(GROUP, LOCAL)])
        with pytest.raises(OSError, match="Address already in use"):
            await second.start()


async def test_a_program_that_sets_reuseaddr_alone_shares_the_port_by_an_option() -> None:
    option = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as foreign:
        foreign.setsockopt(*option)
        foreign.bind(("0.0.0.0", 0))
        port = foreign.getsockname()[1]
        server = Collector("0.0.0.0", port, groups=[(GROUP, LOCAL)], options=[option])
        async with running(server):
            send(b"shared", port)
            await eventually(lambda: server.got == [b"shared"])


@pytest.mark.parametrize(
    ("groups", "kind"),
    [
        (["10.0.0.1"], ValueError),
        (["all"], ValueError),
        ([("239.1.2.3", "lo", 1)], ValueError),
        ([()], ValueError),
        ([("239.1.2.3", "")], ValueError),
        ([("239.1.2.3", "::1")], ValueError),
        ([("ff02::1", "127.0.0.1")], ValueError),
        ([("239.1.2.3", 1.5)], TypeError),
        ([("239.1.2.3", True)], TypeError),
        ([None], ValueError),
        ([4022250974], ValueError),
        ("239.1.2.3", TypeError),
        ([("239.1.2.3", "eth\0")], ValueError),
        ([("239.1.2.3", -1)], ValueError),
        ([("239.1.2.3", "1" * 20)], ValueError),
        ([("ff02::1", 2**32)], ValueError),
        (b"239.1.2.3", TypeError),
        (5, TypeError),
    ],
)
def test_a_wrong_group_is_refused_when_the_server_is_created(
    groups: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        Collector("0.0.0.0", 0, groups=groups)
    shown = groups[0] if isinstance(groups, list) else groups
    assert refuses(caught.value, f"groups={shown!r}")
    assert "Collector: groups must be" in str(caught.value)


@pytest.mark.parametrize(
    ("where", "group", "accepted"),
    [
        ({"address": "0.0.0.0", "port": 0}, GROUP6, "groups of IPv4 for a server at an IPv4 addr"),
        ({"path": "group.sock"}, GROUP, "empty for a Unix socket"),
    ],
    ids=["IPv4", "Unix"],
)
def test_a_group_of_another_family_than_the_address_is_refused(
    where: dict[str, Any], group: str, accepted: str
) -> None:
    with pytest.raises(ValueError, match=f"Collector: groups must be {accepted}"):
        Collector(**where, groups=[group])


async def test_a_group_of_another_family_than_the_host_is_refused_at_the_start() -> None:
    server = Collector("localhost", 0, groups=[GROUP6])
    with pytest.raises(ValueError, match="groups must be groups of IPv4"):
        await server.start()
    assert server.socket is None


async def test_an_address_at_which_no_group_arrives_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "svcrun.net"):
        async with running(Collector(LOCAL, 0, groups=[(GROUP, LOCAL)])):
            pass
    assert "bound to 127.0.0.1; bind '0.0.0.0', '::' or the group" in caplog.text


async def test_a_subclass_may_use_the_names_for_something_else() -> None:
    class Rooms(Collector):
        groups: Any = {"room": {LOCAL}}  # noqa: RUF012 - as users write it

        def broadcast(self, data: bytes) -> int:  # type: ignore[override,misc]
            return len(data)

    class Methods(Collector):
        def groups(self) -> list[str]:  # type: ignore[override,misc]
            return ["any"]

    async with running(rooms := Rooms(LOCAL, 0)):
        assert rooms.groups == {"room": {LOCAL}}
        assert rooms.broadcast(b"four") == 4
        assert not rooms.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)  # type: ignore[union-attr]
    async with running(methods := Methods(LOCAL, 0)):
        assert methods.groups() == ["any"]


def test_groups_are_copied_and_pickled_with_the_server() -> None:
    server = Joiner(groups=iter([(GROUP, LOCAL)]), broadcast=True)
    for twin in (copy.copy(server), pickle.loads(pickle.dumps(server))):  # noqa: S301 - its own
        assert (list(twin.groups), twin.broadcast) == ([(GROUP, LOCAL)], True)


class Joiner(UDPServer):
    """A server that can be pickled."""

    address = "0.0.0.0"
    port = 0

    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        """Do nothing."""


def test_two_hundred_runs_leave_no_memberships(loop_factory: LoopFactory, no_leaks: None) -> None:
    server = Collector("0.0.0.0", 0, groups=[(GROUP, LOCAL), (OTHER, LOCAL)])
    ep = entrypoint(loop_factory=loop_factory)

    async def run() -> None:
        for _ in range(200):
            await ep.start_services(server)
            await ep.stop_services(server)

    with ep as loop:
        loop.run_until_complete(run())
    assert not members() & {GROUP, OTHER}


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is missing")
async def test_socat_sends_to_the_group_and_gets_the_answer() -> None:
    class Answering(Collector):
        async def handle_datagram(self, data: bytes, addr: Any) -> None:
            self.sendto(b"answer to " + data, addr)

    async with running(server := Answering("0.0.0.0", 0, groups=[(GROUP, LOCAL)])):
        found = await asyncio.to_thread(
            subprocess.run,
            [
                *("socat", "-t5", "-"),
                f"UDP4-DATAGRAM:{GROUP}:{server.port},ip-multicast-if={LOCAL},bind={LOCAL}",
            ],
            input=b"socat",
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    assert found.stdout == b"answer to socat", found.stderr


@pytest.fixture
def neighbour() -> Iterator[socket.socket]:
    """A socket that receives broadcasts on the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.255.255.255", 0))
        sock.settimeout(PATIENCE)
        yield sock


async def test_a_server_with_broadcast_sends_to_a_broadcast_address(
    neighbour: socket.socket,
) -> None:
    async with running(server := Collector(LOCAL, 0, broadcast=True)):
        server.sendto(b"all", neighbour.getsockname())
        assert await asyncio.to_thread(neighbour.recv, 10) == b"all"
        assert server.unsent == 0


async def test_a_server_without_broadcast_counts_the_datagram_and_names_the_remedy(
    neighbour: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(server := Collector(LOCAL, 0)):
        server.sendto(b"all", neighbour.getsockname())
        assert server.unsent == 1
    assert "Permission denied; a broadcast address requires broadcast=True" in caplog.text


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_another_value_of_broadcast_than_a_switch_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Collector: broadcast must be True or False, not "):
        Collector(LOCAL, 0, broadcast=value)


def test_a_unix_socket_has_no_broadcast(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broadcast must be False for a Unix socket, not True"):
        Collector(path=tmp_path / "server.sock", broadcast=True)


class TestUnix:
    """A server of Unix datagrams, at an address with unix: in front."""

    async def test_a_bound_peer_is_answered_and_the_file_is_removed(self, tmp_path: Path) -> None:
        class Echo(Collector):
            async def handle_datagram(self, data: bytes, addr: Any) -> None:
                self.sendto(data, addr)

        path, mine = tmp_path / "server.sock", str(tmp_path / "client.sock")
        async with running(server := Echo(f"unix:{path}")):
            assert (server.address, server.port) == (str(path), None)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
                peer.settimeout(PATIENCE)
                peer.bind(mine)
                peer.sendto(b"echo", str(path))
                assert await asyncio.to_thread(peer.recv, 10) == b"echo"
        assert not path.exists()

    async def test_a_peer_without_an_address_can_send_but_not_be_answered(
        self, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "server.sock")
        async with running(server := Collector(f"unix:{path}")):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
                peer.sendto(b"anonymous", path)
            await eventually(lambda: server.got == [b"anonymous"])
            assert not server.senders[0]
            with pytest.raises((TypeError, ValueError), match="the path of a bound Unix socket"):
                server.sendto(b"", server.senders[0])

    async def test_a_peer_that_is_gone_is_counted(self, tmp_path: Path) -> None:
        async with running(server := Collector(f"unix:{tmp_path / 'server.sock'}")):
            server.sendto(b"", str(tmp_path / "gone.sock"))
            assert server.unsent == 1

    async def test_an_abstract_name_has_no_file(self) -> None:
        name = f"\0svcrun-{os.getpid()}"
        async with running(server := Collector(path=name)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
                peer.sendto(b"abstract", name)
            await eventually(lambda: server.got == [b"abstract"])
