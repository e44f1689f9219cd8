"""The error that every part of a config raises."""


class ConfigError(ValueError):
    """A config that cannot run; the message starts with the key."""
