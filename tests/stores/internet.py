"""The stores of the internet on this machine: their own names and TLS behind a proxy, with the protocol of each."""

import base64
import datetime
import json
import ssl
import time
from collections import defaultdict
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, get_native_id
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

GOOGLE, AZURE, HUB, CDN, WEB = (
    "storage.googleapis.com",
    "account.blob.core.windows.net",
    "huggingface.co",
    "cdn-lfs.hf.co",
    "files.example.org",
)
NAMES = [GOOGLE, "oauth2.googleapis.com", AZURE, HUB, CDN, WEB]
REMOTES = {
    "s3": "s3://bucket/data",
    "gs": "gs://bucket/data",
    "gs, HMAC": "gs://bucket/data",
    "azure": "azure://account.blob.core.windows.net/bucket/data",
    "azure-dl": "azure-dl://bucket/data",
    "hf": "hf://datasets/owner/name/data",
    "https": f"https://{WEB}/data",
    "http": "http://{address}/data",
}
"""Where each store has the files of ``data``."""
CUT = 0
"""As a status: a body that ends in the middle, with the connection."""


@dataclass(frozen=True)
class Request:
    """One request of a file, and its answer.

    Args:
        host: that was asked.
        key: of the file.
        range: of bytes that were asked for, as the header has it.
        status: answered.
        sent: bytes of the body.
    """

    host: str
    key: str
    range: str | None
    status: int
    sent: int


class Internet:
    """Serves files by their keys, in every store, to who has its credentials; while the block lasts.

    Args:
        folder: for certificates and credentials.
    """

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.failures: defaultdict[str, list[int]] = defaultdict(list)
        """What is answered next for a key, in turn: a status, or `CUT`."""
        self.serves_ranges = True
        self.signature = 0
        """Of the addresses that Hugging Face sends on to; earlier ones are refused."""
        self.tokens = 0
        """That Google has given."""
        self._folder = folder
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._write_certificate()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Internet":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def variables(self, store: str) -> dict[str, str]:
        """The environment of a user of a store of `REMOTES`."""
        certificate = str(self._folder / "certificate.pem")
        network = {
            "HTTPS_PROXY": f"http://{self.address}",
            "NO_PROXY": "127.0.0.1",
            "REQUESTS_CA_BUNDLE": certificate,
            "SSL_CERT_FILE": certificate,
        }
        return (
            network
            | {
                "s3": {
                    "S3_ENDPOINT_URL": f"http://{self.address}",
                    "AWS_ACCESS_KEY_ID": "aws-key",
                    "AWS_SECRET_ACCESS_KEY": "secret",
                    "AWS_DEFAULT_REGION": "us-east-1",
                },
                "gs": {"GOOGLE_APPLICATION_CREDENTIALS": self._service_account()},
                "gs, HMAC": {"GCS_KEY": "goog-key", "GCS_SECRET": "secret"},
                "azure": {"AZURE_ACCOUNT_ACCESS_KEY": base64.b64encode(b"key").decode()},
                "azure-dl": {
                    "AZURE_ACCOUNT_NAME": "account",
                    "AZURE_ACCOUNT_ACCESS_KEY": base64.b64encode(b"key").decode(),
                },
                "hf": {"HF_TOKEN": "hf-token"},
                "https": {"NETRC": self._netrc()},
                "http": {"NETRC": self._netrc()},
            }[store]
        )

    def remote(self, store: str) -> str:
        """The URI of ``data`` in a store of `REMOTES`."""
        return REMOTES[store].format(address=self.address)

    def sent(self, suffix: str = "") -> int:
        """Bytes that were sent of files whose keys end so."""
        return sum(request.sent for request in self.requests if request.key.endswith(suffix))

    def rest(self) -> None:
        """Wait until no thread of this process is at work for a client.

        A process that is forked while one is within OpenSSL (a handshake, the end of a thread) inherits a lock that
        nobody will release, and hangs where it makes a connection.
        """
        own = {str(get_native_id()), str(self._thread.native_id)}

        def switches() -> dict[str, str] | None:
            try:
                tasks = [task for task in Path("/proc/self/task").iterdir() if task.name not in own]
                return {task.name: (task / "status").read_text().partition("voluntary_ctxt")[2] for task in tasks}
            except OSError:  # one has ended
                return None

        before, deadline = None, time.monotonic() + 10
        while ((now := switches()) is None or now != before) and time.monotonic() < deadline:
            before = now
            time.sleep(0.05)

    def _netrc(self) -> str:
        path = self._folder / "netrc"
        path.write_text(f"machine {WEB} login me password open\nmachine 127.0.0.1 login me password open\n")
        path.chmod(0o600)
        return str(path)

    def _service_account(self) -> str:
        path = self._folder / "service-account.json"
        account = {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "1",
            "private_key": (self._folder / "key.pem").read_text(),
            "client_email": "me@project.iam.gserviceaccount.com",
            "token_uri": "https://oauth2.googleapis.com/token",
        }
        path.write_text(json.dumps(account))
        return str(path)

    def _write_certificate(self) -> None:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
        now = datetime.datetime.now(datetime.timezone.utc)
        alternatives = x509.SubjectAlternativeName([x509.DNSName(host) for host in NAMES])
        made = x509.CertificateBuilder(name, name, self._key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        made = made.add_extension(alternatives, critical=False)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        signed = made.sign(self._key, hashes.SHA256())
        (self._folder / "certificate.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.TraditionalOpenSSL
        (self._folder / "key.pem").write_bytes(self._key.private_bytes(serialization.Encoding.PEM, form, plain))


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is none."""


def _handler(internet: Internet) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def do_CONNECT(self) -> None:
            """Whichever host is asked for, it is here."""
            self.send_response_only(200)
            self.end_headers()
            self.connection = internet.context.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
            self.close_connection = False

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            internet.tokens += 1
            self.begin(200, {"Content-Type": "application/json"})
            self.body(json.dumps({"access_token": "google-token", "expires_in": 3600}).encode())

        def answer(self) -> None:
            host, path = self.headers["Host"], unquote(urlsplit(self.path).path)
            given = self.headers.get("Authorization", "")
            if host == GOOGLE and path.startswith("/download/"):
                key, allowed = path.removeprefix("/download/storage/v1/b/bucket/o/"), given == "Bearer google-token"
            elif given.startswith("AWS4-HMAC-SHA256 Credential=aws-key/"):
                key, allowed = path.removeprefix("/bucket/"), True
            elif host == GOOGLE:  # as S3 speaks
                key, allowed = path.removeprefix("/bucket/"), given.startswith("AWS4-HMAC-SHA256 Credential=goog-key/")
            elif host == AZURE:
                key, allowed = path.removeprefix("/bucket/"), given.startswith("SharedKey account:")
            elif host == HUB:
                key, allowed = path.removeprefix("/datasets/owner/name/resolve/main/"), given == "Bearer hf-token"
            elif host == CDN:
                signed = parse_qs(urlsplit(self.path).query)["signature"] == [str(internet.signature)]
                key, allowed = path[1:], signed and not given
            else:
                key, allowed = path[1:], given == "Basic " + base64.b64encode(b"me:open").decode()
            asked = self.headers.get("x-ms-range") or self.headers.get("Range")
            planned = internet.failures[key]
            failure = planned.pop(0) if planned and host != HUB else None
            data = internet.files.get(key)
            status = 403 if not allowed else 404 if data is None else 200
            if failure not in (None, CUT):
                status = failure
            headers = {"ETag": '"1"', "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT", "x-ms-blob-type": "BlockBlob"}
            body = b""
            if status == 200:
                assert data is not None
                body = data
                if host == HUB:
                    status = 302
                    headers["Location"] = f"https://{CDN}/{key}?signature={internet.signature}"
                    headers |= {"X-Repo-Commit": "0" * 40, "X-Linked-Etag": '"1"', "X-Linked-Size": str(len(data))}
                elif asked and internet.serves_ranges:
                    first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
                    body = data[first : last + 1]
                    status = 206 if body else 416
                    end = f"{first}-{first + len(body) - 1}" if body else "*"
                    headers["Content-Range"] = f"bytes {end}/{len(data)}"
            if status >= 300:
                code = {404: "BlobNotFound", 403: "AuthorizationFailure"}.get(status, "ServerBusy")
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                headers |= {"Content-Type": "application/xml", "x-ms-error-code": code}
            sent = len(body) if self.command == "GET" and status in (200, 206) else 0
            internet.requests.append(Request(host, key, asked, status, sent))
            self.begin(status, headers)
            self.body(body, cut=failure == CUT)

        do_GET = do_HEAD = answer

        def begin(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)

        def body(self, data: bytes, *, cut: bool = False) -> None:
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = cut

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
