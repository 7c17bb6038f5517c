"""Recipes: from a corpus to shards, from a config to a trained model, from several runs to one table.

Nothing here holds mathematics; it wires the library's floors together. Modules are imported where they are
needed, so that importing a package costs nothing:

- ``corpora``: from what is published to shards, one corpus each;
- ``training``: one training run, from its settings to its result, and several in one table;
- ``analysis``: what pruning did to runs, from their checkpoints;
- ``benches``: one benchmark each, of this machine.
"""
