"""Serve an application of FastAPI by uvicorn: a list of notes.

    python examples/web_uvicorn.py
    curl --json '{"text": "buy milk"}' http://127.0.0.1:8080/notes
    curl http://127.0.0.1:8080/notes

It needs uvicorn and FastAPI: pip install 'svcrun[uvicorn]' fastapi.
"""

import argparse
from collections import deque

from fastapi import FastAPI
from pydantic import BaseModel

from svcrun import entrypoint
from svcrun.service.uvicorn import UvicornService


class Note(BaseModel):
    """A note."""

    text: str


class Notes(UvicornService):
    """A server that keeps the last notes."""

    limit: int = 100

    async def create_application(self) -> FastAPI:
        notes: deque[Note] = deque(maxlen=self.limit)
        app = FastAPI()

        @app.get("/notes")
        async def read() -> list[Note]:
            return list(notes)

        @app.post("/notes", status_code=201)
        async def add(note: Note) -> Note:
            notes.append(note)
            return note

        return app


def main() -> None:
    """Run the server until a signal ends it."""
    parser = argparse.ArgumentParser(description="Remember notes.")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 for a free one (%(default)s)")
    options = parser.parse_args()

    notes = Notes(address=options.address, port=options.port)
    with entrypoint(notes) as loop:
        print(f"listening on {notes.address} port {notes.port}", flush=True)
        loop.run_forever()


if __name__ == "__main__":
    main()
