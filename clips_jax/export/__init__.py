"""Models handed to other libraries: `python -m clips_jax.export --help`."""
