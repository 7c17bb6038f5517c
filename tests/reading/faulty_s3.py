"""A front of an S3 server that fails as object stores do: with errors, bodies cut short, and bodies that stall."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Event, Lock, Thread
from types import TracebackType
from urllib.parse import unquote, urlsplit

CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


@dataclass(frozen=True)
class Request:
    """One request, and what became of it.

    Args:
        method: of HTTP.
        key: in its bucket.
        range: the header's value, if it has one.
        status: answered; 0 where the connection was closed instead.
        sent: bytes of the body that were let through.
        fault: ``unavailable``, ``error``, ``cut``, ``stall`` or ``refused``; ``None`` where there was none.
    """

    method: str
    key: str
    range: str | None
    status: int
    sent: int
    fault: str | None


class FaultyS3:
    """Stands at ``url`` before an S3 server while the block lasts, and lets a share of the requests fail.

    Which ones depends on the seed and, for each request, on its method, key and range and on how many of those there
    were before, so that neither threads nor processes change it.

    Args:
        endpoint: URL of the server.
        seed: of the faults.
        unavailable: share of requests that are answered with 503 Slow Down.
        error: share that are answered with 500 Internal Error.
        cut: share whose body ends early, with the connection; without a body (HEAD), the connection ends at once.
        stall: share whose body stops early and stays so, for ``stall_seconds`` or until the client goes.
        stall_seconds: longer than the timeout of the client.
        in_a_row: at most so many faults for the same method, key and range without an answer that is whole.
        refused: status (403 or 404) by key, always.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        seed: int = 0,
        unavailable: float = 0.0,
        error: float = 0.0,
        cut: float = 0.0,
        stall: float = 0.0,
        stall_seconds: float = 30.0,
        in_a_row: int = 3,
        refused: Mapping[str, int] | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self._netloc = urlsplit(endpoint).netloc
        self._seed = seed
        self._shares = {"unavailable": unavailable, "error": error, "cut": cut, "stall": stall}
        self._stall_seconds = stall_seconds
        self._in_a_row = in_a_row
        self._refused = dict(refused or {})
        self._seen: Counter[tuple[str, str, str | None]] = Counter()
        self._failed: Counter[tuple[str, str, str | None]] = Counter()
        self._lock = Lock()
        self._closing = Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultyS3":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def faults(self) -> Counter[str | None]:
        """How many requests met each fault, and under ``None`` how many met none."""
        return Counter(request.fault for request in self.requests)

    def _fault(self, method: str, key: str, asked: str | None) -> str | None:
        if key in self._refused:
            return "refused"
        same = (method, key, asked)
        with self._lock:
            self._seen[same] += 1
            drawn = Random(f"{self._seed} {same} {self._seen[same]}").random()
            if self._failed[same] < self._in_a_row:
                for fault, share in self._shares.items():
                    drawn -= share
                    if drawn < 0:
                        self._failed[same] += 1
                        return fault
            self._failed[same] = 0
        return None


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


def _handler(front: FaultyS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            _, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
            asked = self.headers.get("Range")
            fault = front._fault(self.command, key, asked)

            def record(status: int, sent: int) -> None:  # before the client can know
                front.requests.append(Request(self.command, key, asked, status, sent, fault))

            if fault in ("unavailable", "error", "refused"):
                status = {"unavailable": 503, "error": 500}.get(fault) or front._refused[key]
                xml = f"<?xml version='1.0'?><Error><Code>{CODES[status]}</Code><Message>{fault}</Message></Error>"
                record(status, 0)
                self.begin(status, {"Content-Type": "application/xml", "Content-Length": str(len(xml))})
                if self.command != "HEAD":
                    self.wfile.write(xml.encode())
                return
            connection = HTTPConnection(front._netloc)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            data = response.read()
            connection.close()
            self.close_connection = fault is not None
            if fault == "cut" and not data:
                record(0, 0)
                return
            shown = data if fault is None else data[: Random(f"{front._seed} {len(data)}").randrange(len(data) or 1)]
            record(response.status, len(shown))
            self.begin(response.status, self.headers_of(response, data))
            self.wfile.write(shown)
            if fault == "stall":
                self.wfile.flush()
                front._closing.wait(front._stall_seconds)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def begin(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def headers_of(self, response: HTTPResponse, data: bytes) -> dict[str, str]:
            dropped = {"connection", "transfer-encoding", "content-length"}
            headers = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
            length = response.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            return headers | {"Content-Length": length}

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
