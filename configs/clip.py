"""CLIP (Radford et al. 2021, arXiv 2103.00020): one text per picture, its AltText; softmax loss; no captioner.

    python -m clips_jax.main --config configs/clip.py --workdir runs/clip

Arguments: `configs/family.py`. Temperature 1 / 0.07 at the start, scale at most 100: the paper's.
"""

from ml_collections import ConfigDict

from configs import family


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg, config = family.start(arguments)
    family.set_views(config, alt=family.alt_view(config))
    config.model.captioner = None
    return family.finish(config, arg)
