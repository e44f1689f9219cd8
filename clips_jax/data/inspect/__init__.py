"""Look at a data set before training on it: `python -m clips_jax.data.inspect --config configs/NAME.py`."""
