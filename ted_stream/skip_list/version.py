"""The version of the skip-list's format; part of every file and of every digest."""

FORMAT_VERSION = 1
