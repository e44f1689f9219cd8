"""Recap-CLIP (Li et al. 2024, arXiv 2406.08478): one text per picture, its AltText or its whole recaption.

    python -m clips_jax.main --config configs/recap_mix.py --workdir runs/recap_mix

Arguments beyond those of `configs/family.py`:
  alt: probability of the AltText. 0.8 is the paper's; the CLIPS paper trains its CLIPA and CoCa baselines so.
"""

from ml_collections import ConfigDict

from configs import family


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg, config = family.start(arguments, alt=0.8)
    family.set_views(config, mix=family.mixed_view(config, arg.alt))
    config.model.captioner = None
    return family.finish(config, arg)
