"""Claim (c): what the captioner is conditioned on. None, image, image and AltText; three seeds, equal images seen.

    python -m clips_jax.sweep --sweep configs/sweeps/conditioning.py --workdir runs/conditioning
    python -m clips_jax.report runs/conditioning/*

"none" is a run without captioner: one that sees neither picture nor AltText sends no gradient into a tower, so for the
towers it is the same run.
"""

from collections.abc import Iterator

from clips_jax.sweep.definition import Run

CONDITIONS = {"image": ("image",), "image-alt": ("image", "alt")}


def runs(smoke: bool) -> Iterator[Run]:
    """Named overrides."""
    tiny = ",smoke=True" if smoke else ""
    for seed in range(1 if smoke else 3):
        yield Run(f"none-seed{seed}", f"configs/clips.py:captioner=none{tiny}", {"seed": seed})
        for name, condition_on in CONDITIONS.items():
            overrides = {"seed": seed, "model.captioner.condition_on": condition_on}
            yield Run(f"{name}-seed{seed}", f"configs/clips.py:captioner=teacher_forced{tiny}", overrides)
