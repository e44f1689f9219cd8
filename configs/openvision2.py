"""OpenVision 2 (Liu et al. 2025, arXiv 2509.01644): a captioner only. No text tower, no contrastive loss.

    python -m clips_jax.main --config configs/openvision2.py --workdir runs/openvision2

The captioner is teacher-forced and sees a random share of the image tower's tokens. What it is judged by here is its
caption loss: without a text tower there is no retrieval. Its image tower can start another member's:
--config.init_from.

Arguments beyond those of `configs/family.py`:
  keep: share of the image tokens that the captioner sees in training. The paper: 0.25 to 0.35; 0.3 is an assumption.
"""

from ml_collections import ConfigDict

from configs import family


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg, config = family.start(arguments, keep=0.3)
    family.set_views(config)
    config.objective.contrastive = "none"
    config.objective.caption_weight = 1.0  # the only loss: its weight changes nothing but the scale of the gradient
    captioner = config.model.captioner
    captioner.kind = "teacher_forced"
    captioner.condition_on = ("image",)
    captioner.keep_image_tokens = arg.keep
    captioner.every = 1  # no other loss learns from the rest of the batch
    return family.finish(config, arg)
