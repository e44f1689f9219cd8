"""Many runs from one file: `python -m clips_jax.sweep`."""
