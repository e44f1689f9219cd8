"""CLIPS S/16 by the study's schedule: 112 px pre-training on 2.56 B samples, 224 px fine-tuning on 128 M.

    python -m clips_jax.main --config configs/clips_s16.py --workdir WORKDIR/stage1 --config.data.dataset=NAME
    python -m clips_jax.main --config configs/clips_s16.py:stage=2 --workdir WORKDIR/stage2 \
        --config.init_from=WORKDIR/stage1 --config.data.dataset=NAME

Reported by the paper: COCO R@1 61.8 / 39.4, Flickr30k 85.9 / 66.4 (image to text / text to image). Not measured here.
What each stage needs and on which chips: docs/scale.md, `python -m clips_jax.plan --config configs/clips_s16.py`.
`configs/clips_s16.py:smoke=True` runs the same stage tiny on the built-in data (40 seconds on two cores).
`released_format=True` builds the exact architecture of the released weights' kind.
"""

from ml_collections import ConfigDict

from configs import recipe

STAGES = recipe.STUDY


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    return recipe.get_config("S", 16, STAGES, arguments)
