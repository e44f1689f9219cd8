"""Claim (b) at equal FLOPs: the ladder of `ladder.py`, each step for as many images as its FLOPs allow.

    python -m clips_jax.sweep --sweep configs/sweeps/ladder_equal_flops.py --workdir runs/ladder_equal_flops
    python -m clips_jax.report runs/ladder_equal_flops/* --gains

Every run spends what the last step of the ladder, CLIPS with its captioner, spends there: plain CLIP sees 2.2 times as
many images as in the ladder, whole recaptions 0.4 times as many, and the last step is the ladder's own run. FLOPs are
counted on the traced step (20 s before the first run).
"""

import dataclasses
from collections.abc import Iterator

from clips_jax.config import to_dict
from clips_jax.report.runs import flops_per_image
from clips_jax.sweep.definition import Run
from configs.sweeps import ladder


def runs(smoke: bool) -> Iterator[Run]:
    """Named overrides."""
    steps = list(ladder.runs(smoke))
    configs = {run.name: run.resolve() for run in steps}
    costs = {}  # per image, by step of the ladder: seeds cost the same
    for run in steps:
        step = run.name.rpartition("-seed")[0]
        if step not in costs:
            costs[step] = flops_per_image(to_dict(configs[run.name]))
    *_, budget = costs.values()
    for run in steps:
        config, share = configs[run.name], budget / costs[run.name.rpartition("-seed")[0]]
        samples = round(config.total_steps * share) * config.batch_size
        warmup = round(config.optimizer.warmup_samples * share)
        overrides = {"total_samples": samples, "optimizer.warmup_samples": warmup}
        yield dataclasses.replace(run, overrides={**run.overrides, **overrides})
