"""CoCa (Yu et al. 2022, arXiv 2205.01917): CLIP and a captioner that writes the AltText, reading the picture by
cross-attention.

    python -m clips_jax.main --config configs/coca.py --workdir runs/coca

Caption weight 2: the paper's. At size=demo the captioner's weight and stride are those measured for CLIPS there. Where
it departs from the paper: `clips_jax/models/cross_attention.py`. Arguments: `configs/family.py`.
"""

from ml_collections import ConfigDict

from configs import family


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg, config = family.start(arguments)
    family.set_views(config, alt=family.alt_view(config))
    captioner = config.model.captioner
    captioner.kind = "cross_attention"
    captioner.condition_on = ("image",)
    captioner.target = "alt_text"
    captioner.target_length = config.data.texts.alt_text.length
    return family.finish(config, arg)
