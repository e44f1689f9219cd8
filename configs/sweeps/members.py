"""Every member of the family on the built-in data, three seeds, equal images seen.

    python -m clips_jax.sweep --sweep configs/sweeps/members.py --workdir runs/members
    python -m clips_jax.report runs/members/*

30 runs of 1,800 steps; CLIPA's is its first stage. Not timed as a whole.
"""

from collections.abc import Iterator

from clips_jax.sweep.definition import Run
from configs.family import MEMBERS

VARIANTS = {"clips": ("learnable", "teacher_forced")}


def runs(smoke: bool) -> Iterator[Run]:
    """Named overrides."""
    for seed in range(1 if smoke else 3):
        for member in MEMBERS:
            for captioner in VARIANTS.get(member, ("",)):
                arguments = filter(None, (captioner and f"captioner={captioner}", "smoke=True" if smoke else ""))
                config = ":".join(filter(None, (f"configs/{member}.py", ",".join(arguments))))
                yield Run("-".join(filter(None, (member, captioner, f"seed{seed}"))), config, {"seed": seed})
