"""VeCLIP (Lai et al. 2023, arXiv 2310.07699): one text per picture, its AltText or a visually enriched caption.

    python -m clips_jax.main --config configs/veclip.py --workdir runs/veclip

The recaption stands for the enriched caption, which VeCLIP makes from AltText and picture with two language models; a
data set that has one as another text: --config.objective.views.mix.sources and --config.data.texts.

Arguments beyond those of `configs/family.py`:
  alt: probability of the AltText; 0.5 is an assumption (from memory of the paper).
"""

from ml_collections import ConfigDict

from configs import family


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg, config = family.start(arguments, alt=0.5)
    family.set_views(config, mix=family.mixed_view(config, arg.alt))
    config.model.captioner = None
    return family.finish(config, arg)
