"""What a config needs on chips that are not here: `python -m clips_jax.plan --help`."""
