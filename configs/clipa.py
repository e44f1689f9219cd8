"""CLIPA (Li, Wang, Xie 2023, arXiv 2305.07017): CLIP on few image and text tokens, then briefly on all of them.

    python -m clips_jax.main --config configs/clipa.py --workdir runs/clipa1
    python -m clips_jax.main --config configs/clipa.py:stage=2 --workdir runs/clipa2 --config.init_from=runs/clipa1

Stage 1: low resolution, a share of the patches dropped, 16 text tokens. Stage 2: full resolution, every patch, 32 text
tokens. Resolutions and samples of b16 and l14 are those of the other members; l14 has a third stage.

Arguments beyond those of `configs/family.py`:
  keep: share of the patches kept in stage 1. 0.5 is FLIP's (Li et al. 2023) and, beside a low resolution, an
    assumption: CLIPA finds resizing alone best (keep=1.0).

At size=demo the tower pools by the mean, as dropping and a change of resolution ask for; on so few pictures that learns
far more slowly than the other members' concatenated patches (docs/experiments.md), so compare it with itself only.
"""

from ml_collections import ConfigDict

from configs import family

TEXT_TOKENS = {1: 16, 2: 32, 3: 32}  # stage 1: CLIPA's released B/16 (50 image tokens, 16 of text); 32: assumption


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg, config = family.start(arguments, keep=0.5)
    first = arg.stage == 1
    if arg.size == "demo":
        set_demo_stage(config, first)
        length = 8 if first else config.objective.views.alt.length
    else:
        length = TEXT_TOKENS[arg.stage]
    family.set_views(config, alt=family.alt_view(config) | dict(length=length))
    config.model.captioner = None
    config.model.image.keep_tokens = arg.keep if first else 1.0
    return family.finish(config, arg, demo_stages=2)


def set_demo_stage(config: ConfigDict, first: bool) -> None:
    """Stage 1 at 24 px; stage 2 at 32 px, a tenth of the samples, a tenth of the learning rate. All assumptions."""
    config.model.image.pool = "mean"
    if first:
        config.model.image.image_size = 24
        return
    config.init_from = "WORKDIR_OF_STAGE_1"
    config.total_samples = max(config.total_samples // 10, config.batch_size)
    config.optimizer.warmup_samples = 0
    config.optimizer.learning_rate /= 10
