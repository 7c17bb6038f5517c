"""An S3 server over HTTP, for tests of object storage."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """An S3 server with a bucket: a client of it, and the environment variables by which others find it."""
    import boto3  # only few tests need them
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    variables = {
        "S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    try:
        with urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")):
            pass  # what an earlier server of this process kept
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=endpoint, **keys)
        client.create_bucket(Bucket=bucket)
        yield client, variables
    finally:
        server.stop()
