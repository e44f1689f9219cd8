"""Turns web data into triples that TFDS reads: `python -m clips_jax.data.prepare --help`, docs/data.md.

    sources (tars, table, coco, prepared) ──► rows ──► record (picture, texts) ──► shard ──► data set, manifest

Read in this order: `rows`, `options`, the four `*_source` files, `pictures`, `record`, `shard`, `join`, `duplicates`,
`dataset`, `run`, `builder`, `__main__`. Apache Beam is used in `join`, `duplicates` and `run` only.
"""

import logging

# Beam says so at each start where Google's client libraries are not installed, which only Dataflow needs.
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
