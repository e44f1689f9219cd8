"""SigLIP (Zhai et al. 2023, arXiv 2303.15343): CLIP with a sigmoid per pair of picture and text.

    python -m clips_jax.main --config configs/siglip.py --workdir runs/siglip

Arguments: `configs/family.py`. Scale 10 and bias -10 at the start: the paper's.
"""

from ml_collections import ConfigDict

from configs import family


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg, config = family.start(arguments)
    family.set_views(config, alt=family.alt_view(config))
    config.model.captioner = None
    config.objective.contrastive = "sigmoid"
    config.objective.scale_init = 10.0
    config.objective.bias_init = -10.0
    return family.finish(config, arg)
