"""Is it the data? Parts of the ladder and of the inverse effect on built-in data with other texts; three seeds.

    python -m clips_jax.sweep --sweep configs/sweeps/data_or_size.py --workdir runs/data_or_size
    python -m clips_jax.report runs/data_or_size/*

noisy: half of the training AltTexts say nothing of the picture, as on the web (`emoji/noisy_alt_text`). anywhere: the
sentence that opens a recaption with the name may stand anywhere in it (`emoji/opening_anywhere`), so the first tokens
are worth no more than others. Test splits are those of the usual data. Compare with `ladder.py` and
`inverse_effect.py`; prepares two data sets on first use, half a minute each.
"""

import dataclasses
from collections.abc import Iterator

from clips_jax.sweep.definition import Run
from configs.sweeps import inverse_effect, ladder

NOISY = ("1-clip", "4-two-positives", "6-captioner-teacher-forced")
ANYWHERE = ("truncation-16", "truncation-32", "sub_caption-16", "sub_caption-32", "truncation-128")


def runs(smoke: bool) -> Iterator[Run]:
    """Named overrides."""
    parts = {"noisy": (ladder, NOISY, "noisy_alt_text"), "anywhere": (inverse_effect, ANYWHERE, "opening_anywhere")}
    for name, (sweep, wanted, data) in parts.items():
        for run in sweep.runs(smoke):
            if run.name.rpartition("-seed")[0] in wanted:
                overrides = {**run.overrides, "data.dataset": f"emoji/{data}"}
                yield dataclasses.replace(run, name=f"{name}-{run.name}", overrides=overrides)
