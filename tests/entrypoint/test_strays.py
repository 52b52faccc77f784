"""Laws of a child process whose code comes back to its parent's: it ends there (C21b)."""

import pytest

from tests.entrypoint.programs import Run, lines

PROGRAM = """
import socket
import warnings; warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
from svcrun.service import GracefulService, PeriodicService, TCPServer, UDPServer

{setting}
parent = os.getpid()
forked = asyncio.Event()

def tell(*words):
    say("parent" if os.getpid() == parent else "child", *words)

def fork():
    if forked.is_set():
        return False
    if {way!r}:
        import multiprocessing
        process = multiprocessing.get_context({way!r}).Process(target=child)
        process.start()
        process.join()
        tell("saw", process.exitcode)
    else:
        pid = os.fork()
        if not pid:
            child()
            return True
        tell("saw", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    running.call_soon_threadsafe(forked.set)
    return False

def at(name):
    # Return whether this is the child, which comes back.
    return name == {name!r} and fork()

async def hook(name):
    global running
    running = asyncio.get_running_loop()
    if at(name + " hook"):
        return
    tell(name + " hook")
    await asyncio.sleep(0)
    if at(name + " hook, later"):
        return

class Actor(Service):
    async def start(self):
        if at("start"):
            return
        await asyncio.sleep(0)
        if at("start, later"):
            return
        self.start_event.set()
        tell("started")
        asyncio.get_running_loop().call_soon(at, "callback")
        asyncio.get_running_loop().call_later(0.01, at, "timer")
        await asyncio.sleep(0)
        if at("start, at last"):
            return
        await asyncio.to_thread(at, "thread")

    async def stop(self, exception=None):
        if at("stop"):
            return
        tell("stops")
        await asyncio.sleep(0)
        if at("stop, later"):
            return

class Periodic(PeriodicService):
    interval = 0.05

    async def callback(self):
        if at("periodic"):
            return
        await asyncio.sleep(0)
        if at("periodic, later"):
            return

class Graceful(GracefulService):
    async def start(self):
        self.create_graceful_task(self.work())

    async def work(self):
        if at("task"):
            return
        await asyncio.sleep(0)
        if at("task, later"):
            return

class Tcp(TCPServer):
    async def handle_client(self, reader, writer):
        if at("client"):
            return
        await reader.readline()
        if at("client, later"):
            return
        writer.write(b"parent\\n" if os.getpid() == parent else b"child\\n")
        await writer.drain()

class Udp(UDPServer):
    async def handle_datagram(self, data, addr):
        if at("datagram"):
            return
        await asyncio.sleep(0)
        if at("datagram, later"):
            return
        self.sendto(b"parent" if os.getpid() == parent else b"child", addr)

async def block():
    if at("block"):
        return
    reader, writer = await asyncio.open_connection(tcp.address, tcp.port)
    writer.write(b"hello\\n")
    assert await reader.read() == b"parent\\n"
    writer.close()
    await writer.wait_closed()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((udp.address, udp.port))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, b"hello")
        assert await loop.sock_recv(sock, 100) == b"parent"
    if not {name!r}.startswith(("stop", "third", "fourth")):
        await forked.wait()
    tell("block")

def enter(*services):
    ep = entrypoint(*services, log_format="plain", pool_size=2)
    for name, signal in (
        ("first", ep.pre_start),
        ("second", ep.post_start),
        ("third", ep.pre_stop),
        ("fourth", ep.post_stop),
    ):
        async def call(name=name, **_):
            await hook(name)
        signal.connect(call)
    return ep

def run():
    global tcp, udp
    tcp, udp = Tcp(address="127.0.0.1", port=0), Udp(address="127.0.0.1", port=0)
    services = Actor(), Periodic(), Graceful(), tcp, udp
    if {form!r} == "with":
        with enter(*services) as loop:
            loop.run_until_complete(block())
    else:
        async def main():
            async with enter(*services):
                await block()
        run_async(main())

if __name__ == "__main__":
    run()
    if os.getpid() == parent:
        say("parent left")
"""

SETTINGS = {
    "return": ("def child(): pass", 0),
    "exit": ("def child(): sys.exit(3)", 3),
    "raise": ("def child(): raise ValueError('of the child')", 1),
    "_exit": ("def child(): os._exit(4)", 4),
    "entrypoint": (
        """
def child():
    with entrypoint(Server(), log_format="plain") as loop:
        loop.run_until_complete(asyncio.to_thread(int))
        send_later(0.01)
        loop.run_forever()
    sys.exit(5)
""",
        5,
    ),
}
PLACES = [
    *("start", "start, later", "start, at last", "callback", "timer", "stop", "stop, later"),
    *("first hook", "second hook", "third hook", "fourth hook"),
    *("first hook, later", "fourth hook, later", "periodic", "periodic, later", "thread"),
    *("task", "task, later", "client", "client, later", "datagram", "datagram, later", "block"),
]
CASES = [
    *((place, does, "with") for place in PLACES for does in ("return", "exit")),
    *(
        (place, does, "with")
        for place in ("start", "stop", "client", "periodic, later", "block")
        for does in ("raise", "_exit", "entrypoint")
    ),
    *(
        (place, does, "async with")
        for place in ("start", "callback", "stop", "third hook", "client, later", "block")
        for does in ("return", "exit", "raise")
    ),
    *((f"multiprocessing {way} start", "exit", "with") for way in ("fork", "spawn", "forkserver")),
]


@pytest.mark.parametrize(("place", "does", "form"), CASES)
def test_nothing_of_the_parents_runs_in_a_child(place: str, does: str, form: str, run: Run) -> None:
    setting, code = SETTINGS[does]
    *way, name = place.removeprefix("multiprocessing ").split(" ", int("multi" in place))
    outcome = run(PROGRAM.format(setting=setting, way="".join(way), name=name, form=form))
    said = lines(outcome)
    assert not [line for line in said if line.startswith("child")], outcome
    assert f"parent saw {code}" in said, outcome
    # The parent goes on undisturbed
    assert [line for line in said if line.startswith("parent") and "saw" not in line] == [
        *("parent first hook", "parent started", "parent second hook"),
        *("parent block", "parent third hook", "parent stops", "parent fourth hook", "parent left"),
    ], outcome
    assert outcome.returncode == 0
    worker = [line for line in said if not line.startswith("parent")]
    assert worker == ["started", "stopped", "cancelled"] * (does == "entrypoint")
    assert outcome.stderr.count("SIGTERM received") == (does == "entrypoint"), outcome
    assert "block raised" not in outcome.stderr
    assert "failed" not in outcome.stderr
    if does in ("exit", "entrypoint"):
        return  # the interpreter complains of what the child inherited and did not close
    for trouble in ("Task was destroyed", "never", "unclosed", "WARNING"):
        assert trouble not in outcome.stderr, outcome
    assert outcome.stderr.count("Traceback") == (does == "raise"), outcome
