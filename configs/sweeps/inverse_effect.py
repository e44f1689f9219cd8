r"""Claim (a), the inverse effect: shorter parts of the recaption train better retrieval than the whole.

    python -m clips_jax.sweep --sweep configs/sweeps/inverse_effect.py --workdir runs/inverse_effect
    python -m clips_jax.report runs/inverse_effect/* --x objective.views.mix.budget --series objective.views.mix.mask \
        --level truncation-128

The recaption is the only text in training; four masks x budgets of 4 to 64 tokens, and the whole (128 tokens: 92 % of
the built-in recaptions fit, the longest has 178), three seeds, equal images: 63 runs of 1,200 steps. Not timed as a
whole.
"""

from collections.abc import Iterator

from clips_jax.sweep.definition import Run

WHOLE = 128
BUDGETS = (4, 8, 16, 32, 64)
MASKS = ("truncation", "random", "block", "sub_caption")


def runs(smoke: bool) -> Iterator[Run]:
    """Named overrides."""
    for seed in range(1 if smoke else 3):
        for budget in (4, WHOLE) if smoke else (*BUDGETS, WHOLE):
            for mask in MASKS if budget < WHOLE else ("truncation",):  # every mask keeps all of the whole
                yield Run(
                    f"{mask}-{budget}-seed{seed}",
                    f"configs/recap_mix.py:alt=0{',smoke=True' if smoke else ''}",
                    {
                        "seed": seed,
                        "total_samples": (32 * 20) if smoke else (128 * 1200),
                        "model.text.length": WHOLE + 3,
                        "objective.views.mix.mask": mask,
                        "objective.views.mix.budget": budget,
                        "objective.views.mix.length": budget + 3,
                        "objective.views.mix.sentences": 0,  # sub_caption: further sentences until the budget is used
                    },
                )
