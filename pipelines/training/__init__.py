"""Training runs. Nothing is imported here, so that settings are refused before anything heavy is imported.

- ``settings``: the typed schema of a training config, read and checked;
- ``networks``, ``models``, ``optimizers``, ``lars``, ``image_batches``, ``text_batches``: what a run is built from;
- ``train``, ``compare``: one run, and several runs in one table.
"""
