"""CLIPS L/14 by the full recipe: 84 px on 12.8 B samples, 224 px on 1.02 B, 336 px on 256 M.

    python -m clips_jax.main --config configs/clips_l14.py --workdir WORKDIR/stage1 --config.data.dataset=NAME
    python -m clips_jax.main --config configs/clips_l14.py:stage=2 --workdir WORKDIR/stage2 \
        --config.init_from=WORKDIR/stage1 --config.data.dataset=NAME

Reported by the paper: ImageNet zero-shot 78.5, COCO R@1 75.5 / 55.6, Flickr30k 96.5 / 82.3. Not measured here.
What each stage needs and on which chips: docs/scale.md, `python -m clips_jax.plan --config configs/clips_l14.py`.
`configs/clips_l14.py:smoke=True` runs the same stage tiny on the built-in data (40 seconds on two cores).
`released_format=True` builds the exact architecture of the released weights.
"""

from ml_collections import ConfigDict

from configs import recipe

STAGES = recipe.FULL


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    return recipe.get_config("L", 14, STAGES, arguments)
