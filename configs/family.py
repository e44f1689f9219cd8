"""What the members of the family share: CLIPS at a size. Each member's file says what it does otherwise.

    python -m clips_jax.main --config configs/MEMBER.py --workdir DIR
    python -m clips_jax.main --config configs/MEMBER.py:size=b16 --workdir DIR --config.data.dataset=NAME

Arguments of every member (after a colon, `configs/clip.py:size=l14,stage=2`):
  size: demo (default), the built-in data on two cores; b16 or l14, full size by the schedule of `clips_b16.py` and
    `clips_l14.py`, so that members are compared at equal images seen.
  stage: of the schedule, from 1; later ones need --config.init_from=WORKDIR_OF_THE_STAGE_BEFORE.
  smoke: tiny, 20 steps on the built-in data, whatever the size: to see everything run.

A new member is a file like `configs/clip.py`: start from CLIPS, change the views, the loss or the captioner. Only a
mechanism that no member has yet needs code in `clips_jax/`. docs/family.md has the table of members and their sources.
"""

from typing import Any

from ml_collections import ConfigDict

from clips_jax.config import ConfigError
from clips_jax.config.parse import parse_arguments
from configs import clips_b16, clips_l14, common, demo, recipe

MEMBERS = ("clip", "siglip", "clipa", "recap_mix", "veclip", "laclip", "coca", "clips", "openvision2")
FULL_SIZES = {"b16": ("B", 16, clips_b16.STAGES), "l14": ("L", 14, clips_l14.STAGES)}


def start(arguments: str | None, **own: Any) -> tuple[ConfigDict, ConfigDict]:
    """The arguments, a member's `own` with their defaults among them, and CLIPS at the size they ask for."""
    arg = parse_arguments(arguments, size="demo", stage=1, smoke=False, **own)
    if arg.size == "demo":
        return arg, demo.get_config(f"smoke={arg.smoke}")
    if arg.size not in FULL_SIZES:
        raise ConfigError(f"config argument size={arg.size}: not one of demo, {', '.join(FULL_SIZES)}.")
    config = recipe.full_size(*FULL_SIZES[arg.size], arg.stage, released_format=False)
    return arg, recipe.smoke(config) if arg.smoke else config


def finish(config: ConfigDict, arg: ConfigDict, demo_stages: int = 1) -> ConfigDict:
    """Checks and completes a member's config; texts that nothing reads are not loaded."""
    if arg.size == "demo" and not 1 <= arg.stage <= demo_stages:
        raise ConfigError(f"config argument stage={arg.stage}: at size=demo there are stages 1 to {demo_stages}.")
    used = {source for view in config.objective.views.values() for source in view.sources}
    if config.model.captioner:
        used.add(config.model.captioner.target)
    for name in used & set(config.data.texts):
        used |= {config.data.texts[name].fallback, *config.data.texts[name].among}
    config.data.texts = {name: text for name, text in config.data.texts.items() if name in used}
    return common.complete(config)


def set_views(config: ConfigDict, **views: dict[str, Any]) -> None:
    """Makes these the only inputs of the text tower (none: no text tower), and evaluates accordingly."""
    config.objective.views = views
    if not views:  # nothing encodes a query or a class name
        config.evaluation.retrieval = {}
        config.evaluation.classification = {}


def alt_view(config: ConfigDict) -> dict[str, Any]:
    """The AltText as CLIPS sees it."""
    return config.objective.views.alt.to_dict()


def mixed_view(config: ConfigDict, alt_probability: float, other: str = "recaption") -> dict[str, Any]:
    """One text per picture: the AltText with this probability, else another, as much of it as the text tower holds."""
    sources = {"alt_text": alt_probability, other: 1 - alt_probability}
    return dict(sources=sources, mask="truncation", length=config.model.text.length)
