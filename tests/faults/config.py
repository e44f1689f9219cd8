"""CLIPS in full at the smallest size, with a save, a log line and an evaluation every few steps: something to hit."""

from ml_collections import ConfigDict

from configs import common
from tests import tiny_config

STEPS = 60
BATCH = 24  # divides over 1, 2, 3 and 4 processes, and what each gets by captioner.every


def get_config() -> ConfigDict:
    config = tiny_config.get_config()
    config.batch_size = BATCH
    config.total_samples = BATCH * STEPS
    config.model.captioner.every = 2
    config.optimizer.warmup_samples = BATCH
    config.data.workers = 0
    config.log_every_steps = 1
    config.check_replicas_every_steps = 5
    config.checkpoint = dict(every_steps=3, keep=2)
    config.evaluation = dict(
        every_steps=10, batch_size=48, retrieval=dict(unseen_concepts=dict(split="unseen_concepts", text="name"))
    )
    config.limits = dict(join=120.0, compile=600.0, step=60.0, save=120.0, evaluation=120.0, silence=10.0)
    return common.complete(config)
