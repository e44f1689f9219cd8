"""CLIPS L/14 by the full recipe: 84 px on 12.8 B samples, 224 px on 1.02 B, 336 px on 256 M.

    python -m clips_jax.main --config configs/clips_l14.py --workdir WORKDIR/stage1 --config.data.dataset=NAME
    python -m clips_jax.main --config configs/clips_l14.py:stage=2 --workdir WORKDIR/stage2 \
        --config.init_from=WORKDIR/stage1 --config.data.dataset=NAME

Reported by the paper: ImageNet zero-shot 78.5, COCO R@1 75.5 / 55.6, Flickr30k 96.5 / 82.3. Not measured here.
`configs/clips_l14.py:smoke=True` runs the same stage tiny on the built-in data (40 seconds on two cores).
`released_format=True` builds the exact architecture of the released weights.
"""

from ml_collections import ConfigDict

from clips_jax.config.parse import parse_arguments
from configs import recipe

STAGES = (
    recipe.Stage(84, 32_768, 12_800_000_000, 1.024e-3, 51_000_000),
    recipe.Stage(224, 16_384, 1_020_000_000, 2.56e-5, 26_000_000),
    recipe.Stage(336, 8_192, 256_000_000, 3.2e-6, 0),
)


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg = parse_arguments(arguments, stage=1, smoke=False, released_format=False)
    config = recipe.full_size("L", 14, STAGES, arg.stage, arg.released_format)
    return recipe.smoke(config) if arg.smoke else config
