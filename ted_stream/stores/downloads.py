"""Streaming's downloads of whole files, from web servers too, which streaming has no downloader for."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import botocore.retryhandler
import s3transfer.utils
import streaming.base.util
from botocore.exceptions import NoCredentialsError
from streaming.base.storage.download import DOWNLOADER_MAPPINGS, CloudDownloader

from ted_stream.stores.base import RANDOM
from ted_stream.stores.http import HTTPStore, WebAccess

__all__ = ["CloudDownloader", "WebDownloader", "naming_credentials"]

# Pauses, and the names of boto3's temporary files, are drawn from the global generator otherwise.
for _module in (streaming.base.util, botocore.retryhandler, s3transfer.utils):
    _module.random = RANDOM  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]


class WebDownloader(CloudDownloader):
    """Downloads files by their URLs. Holds no connection, so it crosses forks and is pickled as it is."""

    @staticmethod
    def _client_identifier() -> str:
        return "https"

    def clean_up(self) -> None:
        """There is nothing to be cleaned up."""

    def _validate_remote_path(self, remote: str) -> None:
        pass  # it is registered for what it takes

    def _download_file_impl(self, remote: str, local: str, timeout: float) -> None:
        with closing(HTTPStore(WebAccess, timeout)) as store:
            store.download(remote, local)


for _scheme in ("http", "https"):
    DOWNLOADER_MAPPINGS.setdefault(_scheme, WebDownloader)  # streaming's own, once it has one


@contextmanager
def naming_credentials() -> Iterator[None]:
    """Say, where a download by streaming lacks credentials of S3, what to set.

    Raises:
        PermissionError: in place of boto3's own error, which is no OSError.
    """
    try:
        yield
    except NoCredentialsError as error:
        raise PermissionError(
            "There are no credentials for S3. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a "
            "profile of ~/.aws; for another store than Amazon's, S3_ENDPOINT_URL too."
        ) from error
