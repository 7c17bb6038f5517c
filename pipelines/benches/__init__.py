"""Benchmarks. Nothing is imported here, so that each needs no more than it measures.

- ``selection``, ``step``, ``boundary``: what pruning takes;
- ``streaming``, ``local``, ``planning``: reading, beside stock streaming;
- ``materialising``: copying what a run kept, beside a plain copy;
- ``small_gpt``, ``object_server``, ``random_lists``, ``fresh``: what they share.
"""
