"""Nothing escapes: what is registered must have examples."""

from collections.abc import Mapping, Sequence

__all__ = ["check_covered"]


def check_covered(registry: Mapping[str, type], examples: Mapping[str, Sequence[object]]) -> None:
    """Refuse a registered class without examples of its own, and examples of what is not registered.

    Args:
        registry: classes by name.
        examples: objects of each, by the same names.

    Raises:
        AssertionError: naming what is missing.
    """
    missing, unknown = registry.keys() - examples.keys(), examples.keys() - registry.keys()
    assert not missing, f"registered without examples that the contract runs: {', '.join(sorted(missing))}"
    assert not unknown, f"examples of what is not registered: {', '.join(sorted(unknown))}"
    for name, objects in examples.items():
        assert objects, f"no examples of {name}"
        for example in objects:
            assert isinstance(example, registry[name]), f"{name}: {example!r} is no {registry[name].__name__}"
