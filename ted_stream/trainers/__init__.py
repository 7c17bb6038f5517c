"""Adapters: which event of a training loop calls what of the engine."""
