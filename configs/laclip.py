"""LaCLIP (Fan et al. 2023, arXiv 2305.20088): one text per picture, drawn uniformly from its AltText and its rewrites.

    python -m clips_jax.main --config configs/laclip.py --workdir runs/laclip

A record's rewrites are one feature, a list of any length (LaCLIP has four, by language models). The built-in data has
none; a concept's aliases, other names for the same thing, stand for them there.

Arguments beyond those of `configs/family.py`:
  rewrites: the feature that holds the list; by default `aliases` on the built-in data and `rewrites` elsewhere.
"""

from ml_collections import ConfigDict

from configs import family


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg, config = family.start(arguments, rewrites="")
    rewrites = arg.rewrites or ("aliases" if config.data.dataset == "emoji" else "rewrites")
    text = dict(length=config.data.texts.alt_text.length, fallback="alt_text", among=("alt_text",))
    config.data.texts[rewrites] = text
    family.set_views(config, alt=family.alt_view(config) | dict(sources={rewrites: 1.0}))
    config.model.captioner = None
    return family.finish(config, arg)
