"""A real set of pictures with real titles, from two Debian packages: `python -m clips_jax.data.openclipart --help`.

The folder is laid out as TFDS wants it (builder, README.md, CITATIONS.bib): `tfds build clips_jax/data/openclipart`.
"""
