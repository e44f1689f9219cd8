"""CLIPS in full at the smallest size, on the built-in data: for tests that start whole runs."""

from ml_collections import ConfigDict

from configs import common, demo


def get_config() -> ConfigDict:
    config = demo.get_config("smoke=True")
    config.batch_size = 16
    config.total_samples = 16 * 12
    config.model.image.pool = "mean"
    config.optimizer.warmup_samples = 16
    config.log_every_steps = 2
    config.checkpoint.every_steps = 3
    config.checkpoint.keep = 2
    config.evaluation = dict(
        every_steps=5,
        batch_size=64,
        retrieval=dict(unseen_concepts=dict(split="unseen_concepts", text="name")),
        classification=dict(unseen_concepts_group=dict(split="unseen_concepts", label="group")),
        caption_loss=dict(unseen_concepts=dict(split="unseen_concepts")),
    )
    return common.complete(config)
