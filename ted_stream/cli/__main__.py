"""``python -m ted_stream.cli``: the same as ``ted-stream``, for launchers that start modules."""

from ted_stream.cli import main

main()
