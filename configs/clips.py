"""CLIPS (Liu et al. 2024, arXiv 2411.16828): two positives, AltText and one sentence of the recaption, and a captioner
that writes the whole recaption from picture and AltText.

    python -m clips_jax.main --config configs/clips.py --workdir runs/clips

Arguments beyond those of `configs/family.py`:
  captioner: learnable, the released recipe; teacher_forced, a captioner that can generate; none. By default that of the
    size: teacher_forced at size=demo (`configs/demo.py`), learnable at full size.
"""

from ml_collections import ConfigDict

from clips_jax.config import ConfigError
from configs import family


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg, config = family.start(arguments, captioner="")
    if arg.captioner == "none":
        config.model.captioner = None
    elif arg.captioner in ("learnable", "teacher_forced"):
        config.model.captioner.kind = arg.captioner
    elif arg.captioner:
        raise ConfigError(f"config argument captioner={arg.captioner}: not one of learnable, teacher_forced, none.")
    return family.finish(config, arg)
