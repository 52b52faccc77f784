"""Each example runs, and serves real clients until a signal ends it."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.balancers import haproxy
from tests.conftest import Certificates
from tests.documents import free_ports, run_console
from tests.proxies import LOCAL, v1
from tests.service.activation import activated, listening
from tests.service.managers import Manager
from tests.support import PATIENCE, ROOT, Outcome, Program, has

EXAMPLES = ROOT / "examples"
Run = Callable[..., Program]


@pytest.fixture
def run(run_program: Run) -> Run:
    """Start an example by its name, on free ports."""

    def start(name: str, *arguments: str, **options: Any) -> Program:
        env = {"SVCRUN_LOG_FORMAT": "stream"}
        return run_program(EXAMPLES / name, *arguments, env=env, **options)

    return start


def start_server(run: Run, name: str, *arguments: str) -> tuple[Program, tuple[str, int]]:
    program = run(name, "--port", "0", *arguments)
    place = program.wait_for_line(r"listening on (\S+) port (\d+)")
    return program, (place[1], int(place[2]))


def ask(address: tuple[str, int], request: bytes) -> bytes:
    """Send a request by TCP, end the sending, and return all that comes back."""
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            return answer.read()


def ask_datagram(address: tuple[str, int], request: bytes) -> bytes:
    """Send a request by UDP and return the first answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(request, address)
        return client.recv(65_536)


def fetch(url: str, body: Any = None, context: ssl.SSLContext | None = None) -> Any:
    """Send `body` as JSON to a web server, and return the decoded JSON of its response."""
    data = None if body is None else json.dumps(body).encode()
    assert url.startswith("http")
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - it is that of a server here
    with urllib.request.urlopen(request, timeout=PATIENCE, context=context) as answer:  # noqa: S310 - the same
        return json.load(answer)


@contextlib.contextmanager
def refused(status: int) -> Iterator[None]:
    """Expect that a web server refuses the request in the block."""
    with pytest.raises(urllib.error.HTTPError, match=str(status)) as refusal:
        yield
    refusal.value.close()


def interrupt(program: Program) -> Outcome:
    """End a program as Ctrl-C does, which is not an error."""
    program.interrupt()
    outcome = program.wait()
    assert outcome.returncode == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "Warning" not in outcome.stderr
    return outcome


def test_every_example_has_a_test_and_a_line_in_the_list() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    readme = (EXAMPLES / "README.rst").read_text(encoding="utf-8")
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == set(re.findall(r'"(\w+\.py)"', tests))
    assert names == set(re.findall(r"<(\w+\.py)>", readme))


@pytest.mark.parametrize("end", ["interrupt", "terminate"])
def test_the_quickstart_counts_datagrams_and_reports_the_count_by_tcp_and_http(
    run: Run, end: str
) -> None:
    program = run("quickstart.py", "--port", "0", "--udp-port", "0", "--interval", "0.1")
    udp = program.wait_for_line(r"nc -u -w1 (127\.0\.0\.1) (\d+)")
    tcp = program.wait_for_line(r"nc -w1 (127\.0\.0\.1) (\d+)")
    web = program.wait_for_line(r"curl http://(127\.0\.0\.1):(\d+)/")
    assert tcp.groups() == web.groups()

    assert ask_datagram((udp[1], int(udp[2])), b"cats dogs cats\n") == b"cats 1\n"
    assert ask((tcp[1], int(tcp[2])), b"cats\nowls\n") == b"cats 2\nowls 0\n"
    answer = ask((tcp[1], int(tcp[2])), b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\ncats 2\ndogs 1\n")
    program.wait_for_line("heartbeat: 3 events of 2 kinds", stream="stderr")

    getattr(program, end)()
    outcome = program.wait()
    assert outcome.returncode == 0
    assert "Traceback" not in outcome.stderr
    report, end = outcome.stderr.splitlines()[-2:]
    assert report == "INFO:quickstart:heartbeat: 3 events of 2 kinds"
    assert re.fullmatch(
        r"INFO:svcrun.entrypoint:shutdown completed in \d+\.\d s, all services have stopped",
        end,
    )


def test_the_commands_that_the_quickstart_prints_work(run: Run, tmp_path: Path) -> None:
    program = run("quickstart.py", "--port", "0", "--udp-port", "0")
    program.wait_for_line("Ctrl-C stops it")
    count, query, web = re.findall(r"^    (\S.*)$", program.stdout, re.MULTILINE)
    run_console(f"$ {count}\ncats 1\ndogs 1\ncats 2\n", tmp_path)
    run_console(f"$ {query}\ncats 2\ndogs 1\n", tmp_path)
    run_console(f"$ {web}\ncats 2\ndogs 1\n", tmp_path)
    interrupt(program)


def test_the_quickstart_survives_invalid_input_of_clients(run: Run) -> None:
    program = run("quickstart.py", "--port", "0", "--udp-port", "0")
    udp = program.wait_for_line(r"nc -u -w1 (127\.0\.0\.1) (\d+)")
    tcp = program.wait_for_line(r"nc -w1 (127\.0\.0\.1) (\d+)")
    place = (tcp[1], int(tcp[2]))

    assert ask_datagram((udp[1], int(udp[2])), b"\xff\xfe") == "\ufffd\ufffd 1\n".encode()
    assert ask(place, b"\xff\n\n") == "\ufffd 0\n 0\n".encode()
    assert ask(place, b"HTTP/1.1\n").startswith(b"HTTP/1.1 200 OK")
    with socket.create_connection(place, PATIENCE) as rude:
        rude.sendall(b"no line end")
    assert ask(place, b"cats\n") == b"cats 0\n"
    interrupt(program)


def test_the_plain_services_keep_their_order_to_the_last_line(run: Run, tmp_path: Path) -> None:
    program = run("plain_service.py", "--path", str(tmp_path / "journal"), "--interval", "0.05")
    for _ in range(3):
        program.wait_for_line("tick of clock")
    outcome = interrupt(program)
    ticks = outcome.stdout.count("tick of clock\n")
    assert outcome.stdout.endswith(f"the journal is closed, it has {ticks + 1} lines\n")


def test_the_tcp_echo_returns_lines(run: Run) -> None:
    program, address = start_server(run, "tcp_echo.py")
    assert ask(address, b"hello\nworld\n") == b"hello\nworld\n"
    # There is more to read when it is closed; ENOTCONN is not among the errors of connections.
    with contextlib.suppress(OSError):
        assert ask(address, b"x" * 100_000) == b""
    assert ask(address, b"still there\n") == b"still there\n"
    program.wait_for_line("handler for 127.0.0.1:[0-9]+ failed", stream="stderr")
    program.interrupt()
    assert program.wait().returncode == 0


def test_the_tcp_echo_serves_a_client_after_an_idle_one_has_lost_its_place(run: Run) -> None:
    limits = ("--max-connections", "1", "--idle-timeout", "0.5")
    program, address = start_server(run, "tcp_echo.py", *limits)
    with socket.create_connection(address, PATIENCE) as idle:
        assert ask(address, b"hello\n") == b"hello\n"
        assert idle.recv(1) == b""
    program.wait_for_line("max_connections=1 is reached", stream="stderr")
    program.wait_for_line("has sent nothing for idle_timeout=0.5 s", stream="stderr")
    program.interrupt()
    assert program.wait().returncode == 0


def test_the_greeter_behind_a_load_balancer_knows_its_clients(run: Run, tmp_path: Path) -> None:
    program, address = start_server(run, "proxy_protocol.py", "--trusted", "127.0.0.1")
    assert ask(address, v1(("192.0.2.1", 52011))) == b"hello 192.0.2.1 port 52011\n"
    assert ask(address, LOCAL) == b""
    assert ask(address, b"PROXY nonsense\r\n") == b""
    program.wait_for_line("refused the connection from 127.0.0.1:[0-9]+: it sent", stream="stderr")
    (front,) = free_ports(1)
    config = f"""
        defaults
            mode tcp
            timeout connect 10s
            timeout client 10s
            timeout server 10s
        listen greeter
            bind 127.0.0.1:{front}
            server one 127.0.0.1:{address[1]} send-proxy-v2 check inter 100
    """
    with (
        haproxy(tmp_path, config, front),
        socket.create_connection(("127.0.0.1", front), PATIENCE) as client,
    ):
        port = client.getsockname()[1]
        assert client.recv(100) == f"hello 127.0.0.1 port {port}\n".encode()
    assert "Traceback" not in interrupt(program).stderr


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is missing")
def test_each_member_of_the_udp_group_answers(run: Run) -> None:
    group = f"239.79.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
    arguments = ("--group", group, "--name")
    first, (_, port) = start_server(run, "udp_group.py", *arguments, "first")
    second = run("udp_group.py", *arguments, "second", "--port", str(port))
    second.wait_for_line("listening on")
    answers = subprocess.check_output(
        ["socat", "-t1", "-", f"UDP4-DATAGRAM:{group}:{port},ip-multicast-if=127.0.0.1"],
        input=b"hello",
        timeout=PATIENCE,
    )
    assert sorted(answers.split()) == [b"first", b"second"]
    for member in (first, second):
        member.wait_for_line(r"127\.0\.0\.1 -> b'hello'")
        interrupt(member)


def test_the_activated_server_serves_on_the_socket_that_was_passed_and_on_a_port_without(
    run: Run,
) -> None:
    program, address = start_server(run, "socket_activation.py")
    assert ask(address, b"") == b"welcome to process %d\n" % program.pid
    interrupt(program)
    with listening() as sock:
        for _ in range(2):  # the second process takes over the clients of the first
            program = activated(run, "socket_activation.py", sock, names="shop")
            assert ask(sock.getsockname(), b"") == b"welcome to process %d\n" % program.pid
            interrupt(program)


def test_the_udp_printer_prints_and_answers(run: Run) -> None:
    program, address = start_server(run, "udp_printer.py")
    assert ask_datagram(address, b"hello") == b"5 bytes\n"
    assert "127.0.0.1 -> b'hello'\n" in interrupt(program).stdout


def test_the_tls_echo_returns_lines_to_clients_that_trust_its_certificate(
    run: Run, certificates: Certificates
) -> None:
    program, address = start_server(
        run,
        "tls_echo.py",
        *("--address", "127.0.0.1"),
        *("--cert", str(certificates.server_cert)),
        *("--key", str(certificates.server_key)),
    )
    context = ssl.create_default_context(cafile=certificates.ca)
    with (
        socket.create_connection(address, PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        assert client.version() == "TLSv1.3"
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
    interrupt(program)


def test_the_tls_echo_serves_only_clients_of_the_authority_that_it_was_given(
    run: Run, certificates: Certificates
) -> None:
    program, address = start_server(
        run,
        "tls_echo.py",
        *("--address", "127.0.0.1"),
        *("--cert", str(certificates.server_cert)),
        *("--key", str(certificates.server_key)),
        *("--ca", str(certificates.ca)),
    )
    context = ssl.create_default_context(cafile=certificates.ca)
    with (
        contextlib.suppress(OSError),  # the message depends on a race between the two
        socket.create_connection(address, PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"hello\n")
        assert client.recv(100) == b""
    program.wait_for_line("sent no certificate", stream="stderr")

    context.load_cert_chain(certificates.client_cert, certificates.client_key)
    with (
        socket.create_connection(address, PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
    interrupt(program)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_process_example_computes_in_a_process_that_is_replaced(run: Run) -> None:
    program = run("process.py", "--interval", "0.01")
    first = int(program.wait_for_line(r"computing in process (\d+)", stream="stderr")[1])
    program.wait_for_line("7 is a prime number", stream="stderr")
    os.kill(first, signal.SIGKILL)
    program.wait_for_line("ended with signal SIGKILL", stream="stderr")
    second = int(program.wait_for_line(r"computing in process (\d+)", stream="stderr")[1])
    assert second != first
    program.terminate()
    assert program.wait().returncode == 0


def test_the_systemd_example_reports_to_a_manager_and_reloads(
    run_program: Run, tmp_path: Path
) -> None:
    greeting = tmp_path / "greeting"
    greeting.write_text("welcome\n")
    with Manager(str(tmp_path / "notify")) as manager:
        program = run_program(
            EXAMPLES / "systemd.py",
            *("--port", "0", "--watchdog", "0.1", "--file", str(greeting)),
            env={"NOTIFY_SOCKET": manager.address},
        )
        place = program.wait_for_line(r"listening on (\S+) port (\d+)")
        address = place[1], int(place[2])
        manager.wait_for("WATCHDOG=1", 3)
        assert ask(address, b"") == b"welcome\n"
        greeting.write_text("good evening\n")
        program.send_signal(signal.SIGHUP)
        manager.wait_for("READY=1", 2)
        assert ask(address, b"") == b"good evening\n"
        program.terminate()
        assert program.wait().returncode == 0
        assert manager.phases() == ["READY", "RELOADING", "READY", "STOPPING"]


def test_the_health_example_answers_while_its_loop_is_blocked(run: Run) -> None:
    program = run("health.py", "--port", "0", "--health", "0")
    place = program.wait_for_line(r"listening on port (\d+), health checks on port (\d+)")
    port, health = map(int, place.groups())

    def probe(path: str) -> str:
        # Not by urllib, which raises an exception for a status of 503.
        return ask(("127.0.0.1", health), f"GET {path} HTTP/1.0\r\n\r\n".encode()).decode()

    def wait_for(path: str, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in probe(path):
            assert time.monotonic() < deadline

    wait_for("/readyz", "ready\n")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"block 3\n")
        wait_for("/livez", "busy: event loop blocked")
        wait_for("/livez", "ok")
        client.sendall(b"ill\n")
        wait_for("/readyz", "Patient: unhealthy (RuntimeError: a client said so)")
        client.sendall(b"well\n")
        wait_for("/readyz", "ready\n")
    program.terminate()
    assert program.wait().returncode == 0


@pytest.mark.parametrize("tls", [False, True])
def test_the_client_prints_the_lines_of_its_server_and_connects_again(
    run: Run, tls: bool, certificates: Certificates
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        port = str(server.getsockname()[1])
        ca = ("--ca", str(certificates.ca)) if tls else ()
        program = run("tcp_client.py", "--port", port, "--reconnect", "0.05", *ca)
        for line in ("first", "second"):
            plain, _ = server.accept()
            with context.wrap_socket(plain, server_side=True) if tls else plain as peer:
                peer.settimeout(PATIENCE)
                assert peer.recv(100) == b"hello\n"
                peer.sendall(line.encode() + b"\n")
                program.wait_for_line(line)
        interrupt(program)


def test_the_commands_in_the_text_of_the_tls_echo_work(run: Run, tmp_path: Path) -> None:
    source = (EXAMPLES / "tls_echo.py").read_text(encoding="utf-8")
    make, _, talk = re.findall(r"^    ((?:.*\\\n)*.*\S)$", source.split('"""')[1], re.MULTILINE)
    subprocess.run(["bash", "-c", make], check=True, capture_output=True, cwd=tmp_path)

    files = ("--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem"))
    program, (_, port) = start_server(run, "tls_echo.py", *files)
    # -quiet makes s_client wait for the server to close the connection, which the client began.
    command = f"(printf 'hello\\n'; sleep 1) | {talk.replace('8900', str(port))} -no_ign_eof"
    run_console(f"$ {command}\nhello\n", tmp_path)
    interrupt(program)


def test_the_dependencies_start_in_their_order_and_stop_in_the_opposite_one(run: Run) -> None:
    outcome = run("dependencies.py").wait()
    assert (outcome.returncode, outcome.stderr) == (0, "")
    start, stop = outcome.stdout.split("-- all have started\n")
    assert sorted(start.splitlines()[2:6]) == sorted(
        f"{name} {verb}" for name in ("cache", "queue") for verb in ("starts", "has started")
    )
    assert start.splitlines()[:2] == ["database starts", "database has started"]
    assert start.splitlines()[6:] == ["web starts", "web has started"]
    assert stop.splitlines()[:2] == ["web stops", "web has stopped"]
    assert stop.splitlines()[6:] == ["database stops", "database has stopped"]


def test_the_feed_is_restarted_twice_and_then_ends_the_program_with_its_error(run: Run) -> None:
    outcome = run("restart.py").wait()
    assert outcome.returncode == 1
    assert outcome.stdout.count("display starts") == 3
    assert outcome.stdout.count("display stops because of ConnectionError") == 3
    assert outcome.stderr.endswith("ConnectionError: the source is gone\n")


def test_the_threads_compute_the_digests_of_files(run: Run) -> None:
    license_file = ROOT / "LICENSE"
    outcome = run("threads.py", str(license_file), str(license_file)).wait()
    assert outcome.returncode == 0
    first, second = outcome.stdout.splitlines()
    assert first == second
    assert re.fullmatch(rf"[0-9a-f]{{64}} {re.escape(str(license_file))}", first)


@pytest.mark.skipif(not has("croniter"), reason="needs croniter")
def test_the_schedule_measures_and_reports_and_waits_for_the_reports_at_the_end(run: Run) -> None:
    program = run("scheduled.py", "--interval", "0.05", "--duration", "0.4")
    due = program.wait_for_line(r"due (\S+) Reports\.report at \* \* \* \* \* \*$")
    assert due[1].endswith("+00:00")
    program.wait_for_line("report 1 is sent")
    program.wait_for_line(r"sending a report of \d+ values")
    outcome = interrupt(program)
    begun = outcome.stdout.count("sending a report of")
    assert begun >= 2
    end = re.search(r"(\d+) values were measured, (\d+) reports sent\n\Z", outcome.stdout)
    assert end is not None
    assert int(end[1]) > 1
    assert int(end[2]) == begun == len(re.findall(r"report \d+ is sent", outcome.stdout))


@pytest.mark.skipif(not has("croniter"), reason="needs croniter")
def test_the_schedule_refuses_a_cron_expression_that_never_matches(run: Run) -> None:
    outcome = run("scheduled.py", "--line", "0 0 31 2 *").wait()
    assert outcome.returncode == 1
    assert "'0 0 31 2 *'" in outcome.stderr.splitlines()[-1]


@pytest.mark.skipif(not has("aiohttp"), reason="needs aiohttp")
async def test_the_aiohttp_application_counts_words_in_requests_and_in_messages(run: Run) -> None:
    import aiohttp

    program, (host, port) = start_server(run, "web_aiohttp.py")
    url = f"http://{host}:{port}"
    counted = {"characters": 18, "words": 6, "different": 4}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/count", data="to be or not to be") as answer:
            assert await answer.json() == counted
        async with session.post(f"{url}/count", data="x" * 100_000) as answer:
            assert answer.status == 413
        async with session.ws_connect(f"{url}/live") as socket:
            await socket.send_str("to be or not to be")
            assert await socket.receive_json() == counted
            await socket.send_bytes(b"\xff")
            await socket.send_str("")
            assert await socket.receive_json() == dict.fromkeys(counted, 0)
            program.interrupt()
            message = await socket.receive()
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
    outcome = await asyncio.to_thread(program.wait)
    assert outcome.returncode == 0
    assert "Traceback" not in outcome.stderr
    assert '"POST /count HTTP/1.1" 200' in outcome.stderr


@pytest.mark.skipif(not has("aiohttp"), reason="needs aiohttp")
async def test_the_web_server_behind_a_load_balancer_loses_no_request(run: Run) -> None:
    import aiohttp

    program, (host, port) = start_server(run, "web_drain.py", "--delay", "1.5")
    url = f"http://{host}:{port}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/ready") as answer:
            assert answer.status == 200
        program.terminate()
        await asyncio.to_thread(
            program.wait_for_line, r"SIGTERM received; shutting down in 1\.5 s", stream="stderr"
        )
        async with session.get(f"{url}/ready") as answer:
            assert answer.status == 503
        async with session.get(url) as answer:
            assert await answer.text() == f"served by process {program.pid}\n"
            assert "Connection" not in answer.headers
        await asyncio.to_thread(program.wait_for_line, "drain_delay has ended", stream="stderr")
        async with session.get(url) as answer:
            assert answer.headers["Connection"] == "close"
    assert (await asyncio.to_thread(program.wait)).returncode == 0


@pytest.mark.skipif(not has("aiohttp_asgi"), reason="needs aiohttp-asgi")
def test_the_asgi_example_counts_until_its_client_disconnects(run: Run) -> None:
    program, (host, port) = start_server(run, "web_asgi.py")
    with urllib.request.urlopen(f"http://{host}:{port}/2", timeout=PATIENCE) as answer:
        assert [json.loads(line) for line in answer] == [{"number": 1}, {"number": 2}]
    with urllib.request.urlopen(f"http://{host}:{port}/", timeout=PATIENCE) as answer:
        assert json.loads(answer.readline()) == {"number": 1}
    program.wait_for_line(f"{host} has gone")
    with refused(404):
        fetch(f"http://{host}:{port}/nowhere")
    with urllib.request.urlopen(f"http://{host}:{port}/2", timeout=PATIENCE) as answer:
        assert json.loads(answer.readline()) == {"number": 1}
        outcome = interrupt(program)
        assert json.loads(answer.readline()) == {"number": 2}
    assert outcome.stdout.endswith("\n1 addresses have called\n")


@pytest.mark.skipif(not has("aiohttp_asgi"), reason="needs aiohttp-asgi")
def test_the_asgi_example_serves_another_application_by_https(
    run: Run, certificates: Certificates
) -> None:
    program, (host, port) = start_server(
        run,
        "web_asgi.py",
        *("--app", "web_asgi:app"),
        *("--cert", str(certificates.server_cert)),
        *("--key", str(certificates.server_key)),
    )
    context = ssl.create_default_context(cafile=certificates.ca)
    assert fetch(f"https://{host}:{port}/1", context=context) == {"number": 1}
    interrupt(program)


@pytest.mark.skipif(not has("uvicorn", "fastapi"), reason="needs uvicorn and fastapi")
def test_the_fastapi_example_stores_notes(run: Run) -> None:
    program, (host, port) = start_server(run, "web_uvicorn.py")
    url = f"http://{host}:{port}/notes"
    assert fetch(url) == []
    assert fetch(url, {"text": "buy milk"}) == {"text": "buy milk"}
    with refused(422):
        fetch(url, {"words": "buy milk"})
    assert fetch(url) == [{"text": "buy milk"}]
    interrupt(program)


def test_the_insight_example_finds_the_memory_leak_and_the_blocking_call(run: Run) -> None:
    program, address = start_server(run, "insight.py", "--interval", "0.3")
    ask(address, b"leak 20000\n")
    program.wait_for_line(r"^ +\d+ \| +\d+ \|.*MiB \| examples/insight\.py:\d+$", stream="stderr")
    ask(address, b"block 2\n")
    program.wait_for_line(r"event loop blocked for \d\.\d", stream="stderr")
    program.wait_for_line(r"time\.sleep\(float\(seconds\)\)", stream="stderr")
    program.wait_for_line("event loop unblocked after", stream="stderr")
    assert re.fullmatch(rb"\d+ incidents, \d\.\d s blocked\n", ask(address, b"lag\n"))
    program.terminate()
    assert program.wait().returncode == 0
