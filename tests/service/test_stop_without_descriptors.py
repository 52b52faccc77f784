"""Laws of a stop that comes when the process has no file descriptor left (C21c)."""

import signal
import socket
import ssl
import sys
from collections.abc import Callable

import pytest

from tests.conftest import Certificates
from tests.support import PATIENCE, Program, has, loop_factories

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no RLIMIT_NOFILE")

PROGRAM = """
import asyncio, contextlib, logging, os, resource, signal, sys
from svcrun import Service, entrypoint

kind, cert, key = sys.argv[1:]
place = {"address": "127.0.0.1", "port": 0}
tls = {"cert": cert, "key": key}


async def handle(request):
    print("handling")
    return aiohttp.web.Response(body=await request.read())


def application():
    app = aiohttp.web.Application()
    app.router.add_route("*", "/", handle)
    return app


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            print("lifespan", step)
            await send({"type": f"lifespan.{step}.complete"})
        return
    print("handling")
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def handle_client(self, reader, writer):
    print("handling")
    await reader.readuntil(b"Host: test\\r\\n")
    while not self.stopping:
        await asyncio.sleep(0.01)
    writer.write(b"firstlast")


async def handle_datagram(self, data, addr):
    print("handling")
    try:
        await asyncio.sleep(60)
    finally:
        self.sendto(b"firstlast", addr)


if kind.startswith("AIOHTTP"):
    import aiohttp.web
    from svcrun.service import aiohttp as module
    parameters = {"app": application}
elif kind.startswith("ASGI"):
    from svcrun.service import asgi as module
    parameters = {"app": asgi, "lifespan": "on"}
elif kind.startswith("Uvicorn"):
    from svcrun.service import uvicorn as module
    parameters = {"app": asgi, "lifespan": "on"}
    tls = {"ssl_certfile": cert, "ssl_keyfile": key}
else:
    from svcrun.service import tcp, tls as tls_module, udp
    module = {"TCP": tcp, "TLS": tls_module, "UDP": udp}[kind[:3]]
    parameters = {"drain_timeout": 0.2} if kind == "UDPServer" else {}
if kind.endswith("+TLS") or "SSL" in kind or kind == "TLSServer":
    parameters |= tls
base = getattr(module, kind.removesuffix("+TLS"))
body = {"handle_client": handle_client, "handle_datagram": handle_datagram}
service = type("Busy", (base,), body)(**place, **parameters)


class Last(Service):
    async def start(self):
        pass

    async def stop(self, exception=None):
        logging.warning("stop() is called")


kept = []


def exhaust():
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    with contextlib.suppress(OSError):
        while True:
            kept.append(os.open(os.devnull, os.O_RDONLY))
    print("exhausted")


with entrypoint(service, Last()) as loop:
    loop.add_signal_handler(signal.SIGUSR1, exhaust)
    print("port", service.port)
    loop.run_forever()
print("left in order")
for descriptor in kept:  # the measurement of coverage needs one
    os.close(descriptor)
"""

# The services, and the modules that they need.
KINDS = {
    "AIOHTTPService": "aiohttp",
    "AIOHTTPSSLService": "aiohttp",
    "ASGIHTTPService": "aiohttp_asgi",
    "ASGIHTTPSSLService": "aiohttp_asgi",
    "UvicornService": "uvicorn",
    "UvicornService+TLS": "uvicorn",
    "TCPServer": "svcrun",
    "TLSServer": "svcrun",
    "UDPServer": "svcrun",
}


def connect(kind: str, port: int, certificates: Certificates) -> socket.socket:
    """Connect a client, and begin to send a request."""
    datagrams = kind == "UDPServer"
    client = socket.socket(type=socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", port))
    if "SSL" in kind or "TLS" in kind:
        context = ssl.create_default_context(cafile=certificates.ca)
        client = context.wrap_socket(client, server_hostname="localhost")
    client.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nfirst")
    return client


def wait_until_refused(port: int) -> None:
    """Return when nothing listens at a port any more."""
    while True:
        with socket.socket() as probe:
            probe.settimeout(PATIENCE)
            try:
                probe.connect(("127.0.0.1", port))
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                pass  # the listener was closed while the connection was waiting


@pytest.mark.parametrize("loop", loop_factories())
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_closes_its_listener_and_answers_the_request_in_flight(
    run_program: Callable[..., Program], certificates: Certificates, kind: str, loop: str
) -> None:
    if not has(KINDS[kind]):
        pytest.skip(f"needs {KINDS[kind]}")
    files = (str(certificates.server_cert), str(certificates.server_key))
    use_uvloop = {"SVCRUN_USE_UVLOOP": str(int(loop == "uvloop"))}
    program = run_program(PROGRAM, kind, *files, env=use_uvloop)
    port = int(program.wait_for_line(r"port (\d+)")[1])
    with connect(kind, port, certificates) as client:
        program.wait_for_line("handling")
        program.send_signal(signal.SIGUSR1)
        program.wait_for_line("exhausted")
        program.terminate()
        if kind == "UDPServer":
            received = client.recv(100)
        else:
            wait_until_refused(port)
            if kind not in {"TCPServer", "TLSServer"}:
                client.sendall(b"last")
            received = b"".join(iter(lambda: client.recv(1 << 16), b""))
        assert b"firstlast" in received
    outcome = program.wait()
    assert (outcome.returncode, outcome.stdout.splitlines()[-1]) == (0, "left in order")
    assert "stop() is called" in outcome.stderr  # all that is logged is written
    assert "Traceback" not in outcome.stderr
    assert ("lifespan shutdown" in outcome.stdout) is kind.startswith(("ASGI", "Uvicorn"))
