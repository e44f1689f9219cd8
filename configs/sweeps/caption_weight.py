"""Claim (d): the weight of the captioner's loss; three seeds, equal images seen.

    python -m clips_jax.sweep --sweep configs/sweeps/caption_weight.py --workdir runs/caption_weight
    python -m clips_jax.report runs/caption_weight/* --x objective.caption_weight

The captioner trains on the whole batch, as in the paper, and not on every 8th example as in the demo.
"""

from collections.abc import Iterator

from clips_jax.sweep.definition import Run

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


def runs(smoke: bool) -> Iterator[Run]:
    """Named overrides."""
    tiny = ",smoke=True" if smoke else ""
    for seed in range(1 if smoke else 3):
        for weight in WEIGHTS[-2:] if smoke else WEIGHTS:
            overrides = {"seed": seed, "objective.caption_weight": weight, "model.captioner.every": 1}
            yield Run(f"weight-{weight:g}-seed{seed}", f"configs/clips.py:captioner=teacher_forced{tiny}", overrides)
