"""CLIPS on your own tar shards: prepare them, train a tokenizer on their texts, train.

    python -m clips_jax.data.prepare tars '/data/{00000..00099}.tar' --name my_shards
    python -m clips_jax.data.train_tokenizer --dataset my_shards --vocab_size 8000
    python -m clips_jax.main --config configs/my_shards.py --workdir runs/my_shards

A start, to be changed: `--print_config` shows every key. The first 1,000 records, or a tenth of a smaller set, are kept
out of training; the headline is how well their AltTexts find their pictures. Anything that `clips_jax.data.prepare`
writes will do, also from tables and COCO captions (docs/data.md). Recaptions are optional: without them the AltText
stands in.

Arguments (after a colon, `configs/my_shards.py:dataset=openclipart,size=micro`):
  dataset: name of the prepared data (default my_shards).
  size: S (default), S/16 at 112 px for one accelerator; micro, the demo's model at 48 px for two CPU cores.
  smoke: a tiny model and 20 steps, on the built-in data if no dataset is named.

Run in full only on Open Clip Art (`dataset=openclipart,size=micro`, cut to 200 steps: docs/data.md). S: not measured.
"""

from ml_collections import ConfigDict

from clips_jax.config import ConfigError
from clips_jax.config.parse import parse_arguments
from configs import common

HELD_OUT = "min(1000,10%)"  # records, whichever is less
VOCAB_SIZE = 8192  # rows of the token table; the tokenizer may have fewer pieces


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg = parse_arguments(arguments, dataset="", size="S", smoke=False)
    if arg.size not in ("S", "micro"):
        raise ConfigError(f"config argument size={arg.size}: not one of S, micro.")
    small = arg.smoke or arg.size == "micro"
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 32 if arg.smoke else 128 if small else 1024
    config.total_samples = config.batch_size * (20 if arg.smoke else 800 if small else 20_000)
    config.log_every_steps = 5 if arg.smoke else 50
    config.data = dict(
        dataset=arg.dataset or ("emoji" if arg.smoke else "my_shards"),
        split=f"train[{HELD_OUT}:]",
        texts=common.texts(32, 128),
    )
    # A learnable decoder, as released; at CPU sizes every eighth example trains it (demo: 970 against 1,170 images/s).
    captioner = dict(kind="learnable", target_length=64 if small else 128, condition_on=("image", "alt"))
    if small:
        size, image_size, patch_size = "nano" if arg.smoke else "micro", 48, 8
        captioner["every"] = 8
    else:
        size, image_size, patch_size = "S", 112, 16
    config.model = common.model(size, image_size, patch_size, VOCAB_SIZE, text_length=80, **captioner)
    config.model.dtype = "float32" if small else "bfloat16"
    config.objective = dict(views=common.views("clips", alt_length=35, recap_length=35))
    config.objective.caption_weight = 0.25 if small else 2.0
    config.optimizer = dict(learning_rate=1e-3, warmup_samples=config.total_samples // 20)  # assumption
    config.checkpoint = dict(every_steps=10 if arg.smoke else 500, keep=2)
    config.evaluation = dict(every_steps=0 if arg.smoke else 500)
    held_out = f"train[:{HELD_OUT}]"
    config.evaluation.retrieval = dict(
        held_out=dict(split=held_out, text="alt_text", headline=True),
        held_out_recaption=dict(split=held_out, text="recaption"),
    )
    config.evaluation.caption_loss = dict(held_out=dict(split=held_out))
    return common.complete(config)
