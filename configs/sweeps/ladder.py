"""Claim (b), the ladder from CLIP to CLIPS, one change a step, three seeds, equal images seen.

    python -m clips_jax.sweep --sweep configs/sweeps/ladder.py --workdir runs/ladder
    python -m clips_jax.report runs/ladder/* --gains

18 runs of 1,800 steps: about 4 minutes each on two cores by the demo's time. Not timed as a whole.
"""

from collections.abc import Iterator

from clips_jax.sweep.definition import Run

WHOLE = {"objective.views.mix.length": 131, "model.text.length": 131}  # 128 tokens of recaption and 3 special ones
SUB_CAPTION = {"objective.views.mix.mask": "sub_caption", "objective.views.mix.length": 24}
STEPS = {  # config, its arguments, overrides
    "1-clip": ("clip", "", {}),
    # One text per picture, half of them recaptions (assumption: both texts are seen as often as with two positives).
    "2-recaption-whole": ("recap_mix", "alt=0.5", WHOLE),
    "3-sub-caption": ("recap_mix", "alt=0.5", SUB_CAPTION),
    "4-two-positives": ("clips", "captioner=none", {}),
    "5-captioner-learnable": ("clips", "captioner=learnable", {}),
    "6-captioner-teacher-forced": ("clips", "captioner=teacher_forced", {}),
}


def runs(smoke: bool) -> Iterator[Run]:
    """Named overrides."""
    for seed in range(1 if smoke else 3):
        for name, (member, arguments, overrides) in STEPS.items():
            parts = ",".join(filter(None, (arguments, "smoke=True" if smoke else "")))
            config = f"configs/{member}.py" + (f":{parts}" if parts else "")
            yield Run(f"{name}-seed{seed}", config, {"seed": seed, **overrides})
