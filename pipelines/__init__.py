"""Recipes: from a corpus to shards, from a config to a trained model, from several runs to one table.

Nothing here holds mathematics; it wires the library's floors together. Modules are imported where they are
needed, so that importing this package costs nothing:

- ``prepared``: the folder that ``ted-stream prepare`` writes, its description and its atomic creation;
- ``digits``, ``cifar``, ``imagenet``, ``instructions``: one corpus each;
- ``tars``, ``processes``: what preparing them shares;
- ``settings``: the typed schema of a training config, read and checked;
- ``models``, ``optimizers``, ``image_batches``, ``text_batches``: what a training run is built from;
- ``train``, ``compare``: one run, and several runs in one table;
- ``bench_…``: one benchmark each; ``object_server``, ``random_lists``, ``fresh``: what they share.
"""
