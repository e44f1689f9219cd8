"""Two steps of plain CLIP and nothing after them: for tests of what starts a run."""

from ml_collections import ConfigDict

from configs import common, demo


def get_config() -> ConfigDict:
    config = demo.get_config("smoke=True,method=clip")
    config.batch_size = 16
    config.total_samples = 32
    config.optimizer.warmup_samples = 0
    config.log_every_steps = 1
    config.evaluation = dict(every_steps=0)
    return common.complete(config)
