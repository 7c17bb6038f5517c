"""Text that a Parquet file can hold."""

from ted_stream.skip_list.errors import SkipListError


def check_text(what: str, text: str) -> None:
    """Refuse text that has no UTF-8 encoding, such as a lone surrogate from an undecodable file name.

    Raises:
        SkipListError: ``text`` cannot be encoded.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SkipListError(f"{what} {text!r} is not valid Unicode and cannot be stored; rename it") from error
