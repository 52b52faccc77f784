class Listener:
    def __init__(self, loop, sock, factory, backlog):
        self.loop=loop; self.sock=sock; self.factory=factory; self.backlog=backlog; self.budget=1
        loop.add_reader(sock.fileno(), self.accept)
    def accept(self):
        loop=self.loop; sock=self.sock; make=loop._make_socket_transport; factory=self.factory
        budget=self.budget
        for n in range(budget):
            try:
                conn, peer = sock.accept()
            except (BlockingIOError, InterruptedError):
                self.budget = n or 1
                return
            conn.setblocking(False)
            make(conn, factory(), extra={"peername": peer}).max_size = 65536
        self.budget = min(self.backlog, budget*2)
