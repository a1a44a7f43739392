"""A web server that stands before a store and spoils some of what passes: errors, cut lines, answers that never come.

Started by `running_proxy` in a process of its own (`python tests/proxy.py UPSTREAM ...`), so that nothing of the job
under test shares its loop or its lock. Only the standard library is imported: it is there in a tenth of a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

KINDS = ("503", "503", "503", "503", "503", "503", "429", "429", "429", "reset", "lost", "half")
"""What becomes of a request that fails: half are refused for the moment, a quarter throttled, a quarter cut off: before
they reach the store, after it has done its work (the answer is lost), or in the middle of the answer."""

ANSWERS = {
    "503": b"HTTP/1.1 503 Service Unavailable",
    "429": b"HTTP/1.1 429 Too Many Requests",
    "401": b"HTTP/1.1 401 Unauthorized",
    "403": b"HTTP/1.1 403 Forbidden",
}


@dataclass(frozen=True)
class Faults:
    """How a store misbehaves."""

    fail: float = 0.0  # share of requests that fail, in one of KINDS
    stall: float = 0.0  # share of requests that are never answered; every second of them reaches the store
    latency: float = 0.0  # seconds before each request is passed on
    stall_seconds: float = 120.0  # until the line of a stalled one is closed
    seed: int = 0
    script: str = ""  # what becomes of the first requests, before chance has its way: "503,ok,stall"


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs."""

    port: int
    log: Path

    @property
    def host(self) -> str:
        """Host and port, as a client is told them."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The endpoint that takes the store's place."""
        return f"http://{self.host}"

    def requests(self) -> list[dict[str, str]]:
        """What has passed so far: method, path and outcome ("ok", one of KINDS, "stall" or "stall-done") of each."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]


@contextlib.contextmanager
def running_proxy(upstream: str, faults: Faults = Faults()) -> Iterator[Proxy]:
    """A proxy before `upstream` ("127.0.0.1:9023", with http:// or without) for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "requests.jsonl")
        log.touch()
        options = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(faults).items()]
        command = [sys.executable, __file__, upstream.removeprefix("http://").rstrip("/"), f"--log={log}", *options]
        # It ends when its input does, so also when this process is killed.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield Proxy(int(process.stdout.readline()), log)
        finally:
            process.kill()
            process.communicate()


@dataclass
class Server:
    """Passes requests on, or does not."""

    upstream: tuple[str, int]
    faults: Faults
    log: TextIO
    chance: random.Random = field(init=False)
    script: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.faults.seed)
        self.script = self.faults.script.split(",") if self.faults.script else []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, a request after the other."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self.pass_on(reader, writer):
                pass
        writer.close()

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection can be used again."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        headers = _headers(head)
        if "100-continue" in headers.get("expect", ""):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _read_body(reader, headers)
        outcome = self._choose()
        self.log.write(json.dumps({"method": method, "path": path, "outcome": outcome}) + "\n")
        self.log.flush()
        await asyncio.sleep(self.faults.latency)
        answer = b""
        if outcome in ("ok", "lost", "half", "stall-done"):
            answer = await self._ask(_alone(head), body)
        return await self._answer(writer, outcome, answer)

    async def _answer(self, writer: asyncio.StreamWriter, outcome: str, answer: bytes) -> bool:
        if outcome.startswith("stall"):
            await asyncio.sleep(self.faults.stall_seconds)
            return False
        if outcome in ("reset", "lost", "half"):
            head, _, content = answer.partition(b"\r\n\r\n")
            if outcome == "half" and content:
                writer.write(head + b"\r\n\r\n" + content[: len(content) // 2])
                await writer.drain()
            _cut(writer)
            return False
        if outcome in ANSWERS:
            answer = ANSWERS[outcome] + b"\r\nContent-Length: 0\r\n\r\n"
        writer.write(answer)
        await writer.drain()
        return bool({"content-length", "transfer-encoding"} & set(_headers(answer)))

    async def _ask(self, head: bytes, body: bytes) -> bytes:
        """The store's whole answer, as it came over the line."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            writer.write(head + body)
            await writer.drain()
            answer = await reader.read(-1)
        finally:
            writer.close()
        head, separator, content = answer.partition(b"\r\n\r\n")
        kept = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"keep-alive:"))]
        return b"\r\n".join(kept).replace(b"HTTP/1.0", b"HTTP/1.1", 1) + separator + content

    def _choose(self) -> str:
        if self.script:
            return self.script.pop(0)
        drawn = self.chance.random()
        if drawn < self.faults.fail:
            return self.chance.choice(KINDS)
        if drawn < self.faults.fail + self.faults.stall:
            return self.chance.choice(("stall", "stall-done"))
        return "ok"


def _headers(head: bytes) -> dict[str, str]:
    lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = []
    while True:
        size = await reader.readuntil(b"\r\n")
        part = await reader.readexactly(int(size.split(b";")[0], 16) + 2)
        parts += [size, part]
        if part == b"\r\n":
            return b"".join(parts)


def _alone(head: bytes) -> bytes:
    """A request's head for a connection of its own, whose end is the end of the answer."""
    drop = (b"connection:", b"keep-alive:", b"expect:")
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(drop)]
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n"


def _cut(writer: asyncio.StreamWriter) -> None:
    """Ends a connection as a machine that breaks down does: with a reset, and not with a farewell."""
    line: Any = writer.get_extra_info("socket")
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _main(options: argparse.Namespace) -> None:
    values = {name: getattr(options, name) for name in asdict(Faults())}
    host, _, port = options.upstream.partition(":")
    with open(options.log, "a") as log:  # noqa: PTH123
        server = Server((host, int(port)), Faults(**values), log)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 20, backlog=256)
        print(listening.sockets[0].getsockname()[1], flush=True)
        threading.Thread(target=_end_with_input, daemon=True).start()
        await listening.serve_forever()


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream")
    parser.add_argument("--log")
    for name, default in asdict(Faults()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    asyncio.run(_main(parser.parse_args()))
