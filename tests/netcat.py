"""A replacement of nc for the manual's examples: ``nc [-u] [-U] [-w1] host port``."""

import socket
import sys


def main(arguments: list[str]) -> None:
    """Send stdin, then print the answer until the peer closes the connection or is silent."""
    flags = "".join(it for it in arguments if it.startswith("-"))
    target = [it for it in arguments if not it.startswith("-")]
    kind = socket.SOCK_DGRAM if "u" in flags else socket.SOCK_STREAM
    if "U" in flags:
        client = socket.socket(socket.AF_UNIX, kind)
        client.connect(target[0])
    else:
        host, port = target
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
        client = socket.socket(family, kind)
        client.connect(address)
    with client:
        client.sendall(sys.stdin.buffer.read())
        if kind == socket.SOCK_STREAM:
            client.shutdown(socket.SHUT_WR)
        client.settimeout(1 if kind == socket.SOCK_DGRAM else 20)
        try:
            while data := client.recv(65_536):
                sys.stdout.buffer.write(data)
        except TimeoutError:
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
