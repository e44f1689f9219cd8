"""CLIPS B/16 by the study's schedule: 112 px pre-training on 2.56 B samples, 224 px fine-tuning on 128 M.

    python -m clips_jax.main --config configs/clips_b16.py --workdir WORKDIR/stage1 --config.data.dataset=NAME
    python -m clips_jax.main --config configs/clips_b16.py:stage=2 --workdir WORKDIR/stage2 \
        --config.init_from=WORKDIR/stage1 --config.data.dataset=NAME

Reported by the paper: COCO R@1 68.8 / 48.2, Flickr30k 92.5 / 75.3 (image to text / text to image). Not measured here.
`configs/clips_b16.py:smoke=True` runs the same stage tiny on the built-in data (40 seconds on two cores).
`released_format=True` builds the exact architecture of the released weights.
"""

from ml_collections import ConfigDict

from clips_jax.config.parse import parse_arguments
from configs import recipe

STAGES = (
    recipe.Stage(112, 32_768, 2_560_000_000, 1.024e-3, 25_600_000),
    recipe.Stage(224, 16_384, 128_000_000, 2.56e-5, 2_560_000),  # assumption: the whole row
)


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg = parse_arguments(arguments, stage=1, smoke=False, released_format=False)
    config = recipe.full_size("B", 16, STAGES, arg.stage, arg.released_format)
    return recipe.smoke(config) if arg.smoke else config
