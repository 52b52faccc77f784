"""Find the other members of a multicast group: each member answers to a greeting with its name.

python examples/udp_group.py --name first
printf hello | socat -t1 - UDP4-DATAGRAM:239.7.7.7:3007,ip-multicast-if=127.0.0.1
"""

import argparse
from typing import Any

from svcrun import entrypoint
from svcrun.service import UDPServer


class Member(UDPServer):
    """A member of the group, which may share the port with other members."""

    label: str

    reuse_port = True

    async def handle_datagram(self, data: bytes, addr: Any) -> None:
        print(addr[0], "->", data, flush=True)
        self.sendto(f"{self.label}\n".encode(), addr)


def main() -> None:
    """Run a member of the group until a signal ends it."""
    parser = argparse.ArgumentParser(description="Answer to datagrams of a multicast group.")
    parser.add_argument("--group", default="239.7.7.7", help="the group (%(default)s)")
    parser.add_argument("--interface", default="127.0.0.1", help="where to join (%(default)s)")
    parser.add_argument("--port", type=int, default=3007, help="0 for a free one (%(default)s)")
    parser.add_argument("--name", default="somewhere", help="the answer (%(default)s)")
    options = parser.parse_args()

    member = Member(
        address="0.0.0.0",  # noqa: S104 - no datagram of a group arrives at another address
        port=options.port,
        groups=[(options.group, options.interface)],
        label=options.name,
    )
    with entrypoint(member) as loop:
        print(f"listening on {options.group} port {member.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
