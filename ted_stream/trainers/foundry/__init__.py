"""Pruning in llm-foundry: what its registries find of this package, by entry points, where a YAML names it."""
