"""The one error of this package."""


class SkipListError(ValueError):
    """A skip-list, its layout or its file cannot be trusted; the message holds both values and the fix."""
