"""A read-only object store over a slow link: as much of S3's protocol as a client needs to download.

It sends files from the page cache in large pieces, so that a benchmark measures its clients and the link.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import re
from collections.abc import MutableSequence
from dataclasses import dataclass
from http import HTTPStatus
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

__all__ = ["Link", "ObjectServer", "Traffic"]

_METHODS = ("GET", "HEAD")
_PIECE = 1 << 17  # bytes that a response sends at a time, before another one's turn
_LATE = 0.01  # seconds that a response may catch up: timers wake late, and a client that stops reading gains nothing


@dataclass(frozen=True, kw_only=True)
class Link:
    """What lies between the server and all of its clients.

    Args:
        bytes_per_second: of all bodies together.
        latency: seconds from a request to the first byte of its response.
    """

    bytes_per_second: float = math.inf
    latency: float = 0.0


@dataclass(frozen=True)
class Traffic:
    """What a server has done.

    Args:
        requests: answered, errors included.
        sent: bytes of bodies.
    """

    requests: int
    sent: int

    def __sub__(self, before: Traffic) -> Traffic:
        """What was done since."""
        return Traffic(self.requests - before.requests, self.sent - before.sent)


class ObjectServer:
    """A process that serves ``root/bucket/key`` as the object ``key`` of ``bucket``, while the block lasts.

    Addresses are path-style, as boto3 writes them for an endpoint that is a number; signatures are not looked at.

    Args:
        root: the folder.
        link: how slowly.
    """

    def __init__(self, root: str | os.PathLike[str], link: Link) -> None:
        context = multiprocessing.get_context("spawn")
        self._counts = context.RawArray("q", 2)
        self._port, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(Path(root), link, self._counts, theirs), daemon=True)

    def __enter__(self) -> ObjectServer:
        self._process.start()
        self.url = f"http://127.0.0.1:{self._port.recv()}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.join()

    @property
    def traffic(self) -> Traffic:
        """Since the server started."""
        return Traffic(*self._counts)


# In the server's process -------------------------------------------------------------------------------------------


def _serve(root: Path, link: Link, counts: MutableSequence[int], port: Connection) -> None:
    async def run() -> None:
        server = await asyncio.start_server(_Store(root, link, counts).converse, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class _Store:
    def __init__(self, root: Path, link: Link, counts: MutableSequence[int]) -> None:
        self._root = root.resolve()
        self._link = link
        self._counts = counts
        self._free_at = 0.0  # when everything that is on the link will have passed

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests until the client closes it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                ready = asyncio.get_running_loop().time() + self._link.latency
                self._counts[0] += 1
                request, *lines = head.decode("latin-1").splitlines()
                method, target, _ = request.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                await _until(ready)
                await self._answer(writer, method, unquote(urlsplit(target).path), headers.get("range"), ready)
                if method not in _METHODS:
                    return  # its body would be taken for the next request
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, asked: str | None, ready: float
    ) -> None:
        file = (self._root / path.lstrip("/")).resolve()
        if method not in _METHODS:
            return self._refuse(writer, method, HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowed")
        if not file.is_relative_to(self._root) or not file.is_file():
            return self._refuse(writer, method, HTTPStatus.NOT_FOUND, "NoSuchKey")
        stat = file.stat()
        span = _span(asked, stat.st_size)
        if asked and not span:
            return self._refuse(writer, method, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "InvalidRange")
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": len(span),
            "Content-Type": "binary/octet-stream",
            "ETag": f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"',
            "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT",
        }
        if asked:
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{stat.st_size}"
        writer.write(_head(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK, headers))
        if method == "GET":
            await self._send(writer, file, span, ready)

    async def _send(self, writer: asyncio.StreamWriter, file: Path, span: range, ready: float) -> None:
        clock = asyncio.get_running_loop().time
        with file.open("rb", buffering=0) as body:
            body.seek(span.start)
            for start in range(span.start, span.stop, _PIECE):
                piece = body.read(min(_PIECE, span.stop - start))
                # Counted from when the piece before had passed rather than from when the timer woke: else every piece
                # would add the timer's delay.
                self._free_at = passed = max(self._free_at, ready) + len(piece) / self._link.bytes_per_second
                await _until(passed)
                self._counts[1] += len(piece)
                writer.write(piece)
                await writer.drain()
                ready = max(passed, clock() - _LATE)

    def _refuse(self, writer: asyncio.StreamWriter, method: str, status: HTTPStatus, code: str) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
        writer.write(_head(status, {"Content-Type": "application/xml", "Content-Length": len(body)}))
        if method != "HEAD":
            self._counts[1] += len(body)
            writer.write(body.encode())


async def _until(moment: float) -> None:
    await asyncio.sleep(moment - asyncio.get_running_loop().time())


def _head(status: HTTPStatus, headers: dict[str, object]) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _span(asked: str | None, size: int) -> range:
    """The bytes that a Range header asks for; empty where there are none of them."""
    if not asked:
        return range(size)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if match is None or not any(match.groups()):
        return range(0)
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    return range(int(first), min(size, int(last) + 1) if last else size)
