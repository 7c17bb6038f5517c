"""The versions of the skip-list's format; part of every file and of every digest."""

UNWEIGHTED = 1  # which readers of before there were weights read too
WEIGHTED = 2
FORMAT_VERSION = WEIGHTED  # the newest; all before it are read
