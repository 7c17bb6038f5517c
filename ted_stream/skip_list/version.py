"""The versions of the skip-list's format; part of every file and of every digest."""

FORMAT_VERSION = 4
"""The newest; all before it are read."""


def version_of(*, weighted: bool, with_content: bool) -> int:
    """The version of a list by what it holds: the lowest, which readers of before there was more read too."""
    return 1 + weighted + 2 * with_content
