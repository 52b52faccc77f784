"""Laws of endpoints: refused values, bound sockets, and their files (C23, C24)."""

import asyncio
import errno
import logging
import os
import pickle
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from svcrun._net.addresses import format_address
from svcrun._net.endpoint import Endpoint, local_address
from svcrun.errors import NoEndpoint, NotASocket, ParameterError, ParameterTypeError
from svcrun.sockets import bind_socket
from tests.support import refuses

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


class TestBindSocket:
    """Laws of bind_socket()."""

    @pytest.mark.parametrize(
        ("address", "family"),
        [
            ("127.0.0.1", socket.AF_INET),
            ("0.0.0.0", socket.AF_INET),
            ("::", socket.AF_INET6),
            ("::1", socket.AF_INET6),
            ("localhost", socket.AF_INET),
        ],
    )
    def test_the_family_is_that_of_the_address(
        self, address: str, family: socket.AddressFamily
    ) -> None:
        with bind_socket(address=address, port=0) as sock:
            assert sock.family == family
            assert sock.type == STREAM
            assert not sock.getblocking()
            assert sock.getsockname()[1]

    def test_family_and_type_are_accepted_as_positional_arguments(self) -> None:
        with bind_socket(socket.AF_INET6, DATAGRAM, address="::", port=0) as sock:
            assert (sock.family, sock.type) == (socket.AF_INET6, DATAGRAM)
            # C23: "::" takes IPv4 as well, however it was asked for.
            assert not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)

    def test_a_family_that_does_not_fit_is_refused_by_the_system(self) -> None:
        with pytest.raises(OSError, match=r"127.0.0.1"):
            bind_socket(socket.AF_INET6, address="127.0.0.1")

    def test_a_socket_option_overrides_the_defaults(self) -> None:
        options = [(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)]
        with bind_socket(address="::", options=options) as sock:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)

    def test_a_port_is_shared_only_with_reuse_port(self) -> None:
        with bind_socket(address="127.0.0.1") as sock:
            assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with bind_socket(address="127.0.0.1", reuse_port=True, reuse_addr=False) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)

    def test_two_datagram_sockets_never_share_a_port_by_accident(self) -> None:
        with bind_socket(socket.AF_INET, DATAGRAM, address="127.0.0.1") as first:
            port = first.getsockname()[1]
            with pytest.raises(OSError, match=f"127.0.0.1:{port}") as caught:
                bind_socket(socket.AF_INET, DATAGRAM, address="127.0.0.1", port=port)
            assert caught.value.errno == errno.EADDRINUSE

    @pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
    def test_a_path_binds_a_unix_socket(self, tmp_path: Path, kind: int) -> None:
        path = tmp_path / "sock"
        with bind_socket(socket.AF_UNIX, kind, address=str(path)) as sock:
            assert sock.getsockname() == str(path)

    @pytest.mark.parametrize(
        ("address", "name", "url"),
        [
            ("127.0.0.1", None, "tcp://127.0.0.1:"),
            ("::1", "udp", "udp://[::1]:"),
            ("\0svcrun-test-log", None, "unix://@svcrun-test-log"),
        ],
    )
    def test_the_bound_address_is_logged(
        self, address: str, name: str | None, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        with bind_socket(address=address, proto_name=name):
            assert caplog.messages[0].startswith(f"Listening {url}")

    def test_a_refused_option_leaves_no_socket_behind(self, no_leaks: None) -> None:
        with pytest.raises(OSError, match=r"127.0.0.1:0"):
            bind_socket(address="127.0.0.1", options=[(socket.IPPROTO_TCP, 9999, 1)])


class TestParameters:
    """C7: each mistake is an error when the endpoint is created."""

    @pytest.mark.parametrize(
        ("parameters", "error", "named"),
        [
            ({}, NoEndpoint, "a place to listen at"),
            ({"address": "::1"}, NoEndpoint, "a port beside address='::1'"),
            ({"address": "", "port": 1}, ParameterError, "address=''"),
            ({"address": "a b", "port": 1}, ParameterError, "address='a b'"),
            ({"address": "[::1]", "port": 1}, ParameterError, "brackets"),
            ({"address": "::1:80:x", "port": 1}, ParameterError, "address='::1:80:x'"),
            ({"address": "host:80", "port": 1}, ParameterError, "address='host:80'"),
            ({"address": "256.1.1.1", "port": 1}, ParameterError, "address='256.1.1.1'"),
            ({"address": b"::1", "port": 1}, ParameterTypeError, "address=b'::1'"),
            ({"address": "::1", "port": 65536}, ParameterError, "65535"),
            ({"address": "::1", "port": None, "path": "/x"}, ParameterError, "None beside address"),
            ({"path": ""}, ParameterError, "path=''"),
            ({"path": "\0"}, ParameterError, "path="),
            ({"path": "/a\0b"}, ParameterError, "path="),
            ({"path": "/" + "x" * 200}, ParameterError, "107 bytes"),
            ({"path": "/" + "ü" * 60}, ParameterError, "107 bytes"),
            ({"path": 5}, ParameterTypeError, "path=5"),
            ({"path": "/x", "port": 80}, ParameterError, "port=80"),
            ({"address": "unix:"}, ParameterError, "path=''"),
            ({"sock": 5}, NotASocket, "sock=5"),
            ({"address": "::1", "port": 0, "options": 5}, ParameterTypeError, "options=5"),
            ({"address": "::1", "port": 0, "options": [(1,)]}, ParameterError, "options="),
            ({"address": "::1", "port": 0, "options": [(1, 2, "3")]}, ParameterTypeError, "opti"),
            ({"address": "::1", "port": 0, "options": [("a", 2, 3)]}, ParameterTypeError, "opti"),
        ],
    )
    def test_a_wrong_value_is_an_error_that_names_owner_parameter_and_value(
        self, parameters: dict[str, Any], error: type[Exception], named: str
    ) -> None:
        with pytest.raises(error) as caught:
            Endpoint("The server", **parameters)
        assert "The server" in str(caught.value)
        assert refuses(caught.value, named)

    def test_a_path_of_the_maximum_length_is_accepted(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        path += "x" * (107 - len(path))
        endpoint = Endpoint("The server", path=path)
        endpoint.close(endpoint.bind())

    @pytest.mark.parametrize(
        ("make", "named"),
        [
            (lambda: socket.socket(type=DATAGRAM), "stream"),
            (lambda: socket.socket(socket.AF_NETLINK, STREAM | socket.SOCK_RAW), "stream"),
        ],
    )
    def test_a_socket_of_another_type_is_refused(self, make: Any, named: str) -> None:
        try:
            sock = make()
        except OSError:
            pytest.skip("the system has no such sockets")
        with sock, pytest.raises(ParameterError, match=named):
            Endpoint("The server", sock=sock)

    def test_an_ssl_socket_is_refused(self) -> None:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        with (
            socket.socket() as plain,
            context.wrap_socket(plain) as sock,
            pytest.raises(NotASocket),
        ):
            Endpoint("The server", sock=sock)

    def test_a_socket_overrides_an_address(self) -> None:
        with bind_socket(address="127.0.0.1") as sock:
            endpoint = Endpoint("The server", address="203.0.113.7", port=1, sock=sock)
            assert endpoint.bind() is sock


class TestPlaces:
    """Laws of bound endpoints."""

    def test_scoped_addresses_keep_their_scope(self) -> None:
        addresses = [
            info[4]
            for name in {name for _, name in socket.if_nameindex()}
            for info in _link_local(name)
        ]
        if not addresses:
            pytest.skip("no link-local address here")
        host = addresses[0][0].partition("%")[0]
        scoped = f"{host}%{socket.if_indextoname(addresses[0][3])}"
        endpoint = Endpoint("The server", address=scoped, port=0)
        sock = endpoint.bind(backlog=1)
        assert local_address(sock) == (scoped, sock.getsockname()[1])
        endpoint.close(sock)

    async def test_a_host_name_is_resolved_without_blocking_the_loop(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = asyncio.get_running_loop()

        def fail(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("bind() looks up what resolve() has found")

        endpoint = Endpoint("The server", address="somewhere.example", port=0)

        async def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
            return [
                (socket.AF_INET6, STREAM, 6, "", ("::1", 0, 0, 0)),
                (socket.AF_INET, STREAM, 6, "", ("127.0.0.1", 0)),
            ]

        monkeypatch.setattr(type(loop), "getaddrinfo", getaddrinfo, raising=False)
        await endpoint.resolve(loop)
        monkeypatch.setattr(socket, "getaddrinfo", fail)
        sock = endpoint.bind()
        # Of several addresses the first of IPv4.
        assert local_address(sock)[0] == "127.0.0.1"
        endpoint.close(sock)

    async def test_a_host_name_with_an_ipv6_address_alone_is_bound(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = [(socket.AF_INET6, STREAM, 6, "", ("::1", 0, 0, 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        endpoint = Endpoint("The server", address="six.example", port=0)
        sock = endpoint.bind()
        assert local_address(sock)[0] == "::1"
        endpoint.close(sock)

    @pytest.mark.parametrize("place", [{"address": "::1", "port": 0}, {"address": "localhost"}])
    async def test_endpoints_without_a_host_name_are_not_resolved(
        self, place: dict[str, Any]
    ) -> None:
        endpoint = Endpoint("The server", **{"port": 0, **place})
        loop: Any = None
        await endpoint.resolve(loop)

    def test_an_endpoint_can_be_bound_several_times(self, tmp_path: Path) -> None:
        for endpoint in (
            Endpoint("The server", address="127.0.0.1", port=0),
            Endpoint("The server", path=tmp_path / "sock"),
            Endpoint("The server", path="\0svcrun-test-again"),
            Endpoint("The server", sock=bind_socket(address="::", port=0)),
            Endpoint("The server", sock=bind_socket(address="\0svcrun-test-given")),
        ):
            places = set()
            for _ in range(3):
                sock = endpoint.bind(backlog=1)
                places.add(local_address(sock))
                assert str(endpoint)
                endpoint.close(sock)
            if endpoint.port is None:
                assert len(places) == 1

    def test_a_bound_socket_can_listen_later(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        endpoint = Endpoint("The server", address="127.0.0.1", port=0, scheme="http")
        sock = endpoint.bind()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(sock.getsockname())
        assert not caplog.records
        endpoint.listen(sock, 1)
        socket.create_connection(sock.getsockname()).close()
        assert f"Listening http://127.0.0.1:{sock.getsockname()[1]}" in caplog.text
        endpoint.close(sock)

    def test_a_listener_that_was_faster_is_the_same_error_as_one_that_was_bound_before(
        self,
    ) -> None:
        endpoints = [Endpoint("The server", address="127.0.0.1", port=0)]
        first = endpoints[0].bind()
        port = first.getsockname()[1]
        endpoints.append(Endpoint("The server", address="127.0.0.1", port=port))
        second = endpoints[1].bind()  # allowed as long as neither listens
        endpoints[0].listen(first, 1)
        place = f"<the service>: could not listen on tcp://127.0.0.1:{port}"
        with pytest.raises(OSError, match=place) as caught:
            endpoints[1].listen(second, 1, "<the service>")
        assert caught.value.errno == errno.EADDRINUSE
        for endpoint, sock in zip(endpoints, (first, second), strict=True):
            endpoint.close(sock)

    def test_a_second_listener_is_an_error_that_names_endpoint_and_service(self) -> None:
        with bind_socket(address="127.0.0.1") as sock:
            sock.listen()
            port = sock.getsockname()[1]
            endpoint = Endpoint("The server", address="127.0.0.1", port=port)
            with pytest.raises(OSError, match="<the service>: could not listen") as caught:
                endpoint.bind("<the service>", backlog=1)
            assert caught.value.errno == errno.EADDRINUSE
            assert f"tcp://127.0.0.1:{port}" in str(caught.value)

    def test_a_missing_permission_is_a_permission_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Forbidden(socket.socket):
            def bind(self, address: Any) -> None:
                raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(socket, "socket", Forbidden)
        with pytest.raises(PermissionError, match=r"tcp://127.0.0.1:80: .* privileges"):
            Endpoint("The server", address="127.0.0.1", port=80).bind()

    def test_an_endpoint_can_be_pickled(self) -> None:
        endpoint = pickle.loads(pickle.dumps(Endpoint("The server", address="::1", port=80)))  # noqa: S301
        assert repr(endpoint) == "<Endpoint tcp://[::1]:80>"


class TestFiles:
    """Laws of the files of Unix sockets."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "sock"

    @pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
    def test_the_file_of_a_closed_socket_is_replaced(self, path: Path, kind: int) -> None:
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.bind(str(path))
        endpoint = Endpoint("The server", path=path, kind=kind)
        endpoint.close(endpoint.bind())
        assert not path.exists()

    @pytest.mark.parametrize("other", [STREAM, DATAGRAM])
    @pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
    def test_the_file_of_an_open_socket_is_not_replaced(
        self, path: Path, kind: int, other: int
    ) -> None:
        with socket.socket(socket.AF_UNIX, other) as sock:
            sock.bind(str(path))
            if other == STREAM:
                sock.listen()
            with pytest.raises(OSError, match=r"unix://.*sock") as caught:
                Endpoint("The server", path=path, kind=kind).bind()
            assert caught.value.errno == errno.EADDRINUSE
            assert path.is_socket()

    def test_a_file_of_another_kind_is_not_replaced(self, path: Path) -> None:
        path.write_text("precious")
        with pytest.raises(OSError, match="unix://"):
            Endpoint("The server", path=path).bind()
        assert path.read_text() == "precious"

    def test_a_link_to_a_socket_is_not_replaced(self, path: Path, tmp_path: Path) -> None:
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="unix://"):
            Endpoint("The server", path=path).bind()
        assert stat.S_ISLNK(path.lstat().st_mode)

    def test_a_missing_folder_is_an_error_that_names_the_path(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"unix://.*none/sock"):
            Endpoint("The server", path=tmp_path / "none" / "sock").bind()

    def test_a_file_that_was_removed_before_is_no_error(self, path: Path) -> None:
        endpoint = Endpoint("The server", path=path)
        sock = endpoint.bind()
        path.unlink()
        endpoint.close(sock)

    def test_a_file_that_another_server_created_is_not_removed(self, path: Path) -> None:
        endpoint = Endpoint("The server", path=path)
        sock = endpoint.bind()
        path.unlink()
        path.write_text("another's")
        endpoint.close(sock)
        assert path.read_text() == "another's"

    def test_a_file_that_can_not_be_removed_is_a_warning(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        endpoint = Endpoint("The server", path=path)
        sock = endpoint.bind()

        def forbid(path: str) -> None:
            raise PermissionError(errno.EPERM, "not permitted", path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", forbid)
            endpoint.close(sock)
        assert "The server" in caplog.text
        assert "not permitted" in caplog.text


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        ("/run/x.sock", "/run/x.sock"),
        (b"\0name", "@name"),
        ("", "an unnamed peer"),
        (None, "an unnamed peer"),
    ],
)
def test_addresses_of_peers_are_formatted_as_host_and_port(address: Any, text: str) -> None:
    assert format_address(address) == text


def _link_local(name: str) -> list[Any]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return []
    found: list[Any] = []
    for line in lines:
        digits, index, _, _, _, interface = line.split()
        if interface == name and digits.startswith("fe80"):
            host = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
            found.append((socket.AF_INET6, STREAM, 6, "", (host, 0, 0, int(index, 16))))
    return found
