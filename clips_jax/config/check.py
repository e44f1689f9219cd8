"""Checks on a config that run before anything compiles; each error names the key and says what would be right."""

import functools

from clips_jax.config import Config, ConfigError, DataConfig, ModelConfig
from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE

# The smallest share of a data set in a mixture: two of the 4,096 positions over which shares are exact (`data/order`).
SMALLEST_SHARE = 2 / 4096

# The smallest value of each number that has one.
SMALLEST = {
    "batch_size": 1,
    "accumulation_steps": 1,
    "log_every_steps": 1,
    "seed": 0,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 1,
    "checkpoint.keep_every_steps": 0,
    "check_replicas_every_steps": 0,
    "nonfinite.stop_after": 1,
    "nonfinite.rewinds": 0,
    **{f"limits.{phase}": 1 for phase in ("join", "compile", "step", "save", "evaluation", "silence")},
    "evaluation.every_steps": 0,
    "evaluation.batch_size": 1,
    "model.joint_dim": 1,
    "model.image.image_size": 1,
    "model.image.patch_size": 1,
    "model.text.vocab_size": 1,
    "optimizer.learning_rate": 0,
    "optimizer.warmup_samples": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_norm": 0,
    "objective.scale_init": 1e-6,
    "data.jitter": 0,
    "data.threads": 1,
    "data.workers": -1,
    "data.prefetch": 1,
    **{
        f"model.{tower}.transformer.{key}": 1
        for tower in ("image", "text")
        for key in ("width", "depth", "heads", "mlp_dim")
    },
}


def check(config: Config) -> None:
    """Checks that hold on any number of devices; `check_mesh` adds those that depend on it."""
    for key, smallest in SMALLEST.items():
        value = functools.reduce(getattr, key.split("."), config)
        if not value >= smallest:  # also refuses NaN
            raise ConfigError(f"{key}: {value}; use {smallest} or more.")
    if config.total_steps < 1:
        raise ConfigError(
            f"total_samples: {config.total_samples} is less than one batch (batch_size {config.batch_size}); "
            "it counts samples, not steps."
        )
    _check_model(config.model)
    _check_data(config.data)
    _check_views(config)
    _check_packing(config)
    _check_captioner(config)
    _check_evaluation(config)
    if config.optimizer.warmup_samples // config.batch_size >= config.total_steps:
        raise ConfigError(
            f"optimizer.warmup_samples: {config.optimizer.warmup_samples} is not below total_samples "
            f"({config.total_samples}), so the learning rate would never reach its peak: lower it, too."
        )


def check_mesh(config: Config, device_count: int) -> dict[str, int]:
    """Axis sizes for this many devices; raises `ConfigError` if the batch does not divide over them."""
    sizes = config.mesh.resolve(device_count)
    shards = sizes["data"] * sizes["fsdp"]
    if config.batch_size % shards:
        down = config.batch_size // shards * shards
        raise ConfigError(
            f"batch_size: {config.batch_size} does not divide over data x fsdp = {shards} devices; "
            f"use {' or '.join(str(b) for b in (down, down + shards) if b)}."
        )
    rows, parts = config.batch_size // shards, config.accumulation_steps
    _check_divides("accumulation_steps", parts, rows, "examples of a device")
    part = (
        f"examples that a device computes at a time (batch_size / (data x fsdp) / accumulation_steps = {rows // parts})"
    )
    if config.model.captioner:
        _check_divides("model.captioner.every", config.model.captioner.every, rows // parts, part)
    if config.model.text.packing and config.objective.views:
        _check_divides("model.text.packing.group", config.model.text.packing.group, rows // parts, part)
    return sizes


def _check_divides(key: str, value: int, whole: int, what: str) -> None:
    if whole % value:
        close = max(d for d in range(1, min(value, whole) + 1) if whole % d == 0)
        raise ConfigError(f"{key}: {value} does not divide the {whole} {what}; use a divisor, such as {close}.")


def _check_model(model: ModelConfig) -> None:
    stacks = {"model.image": model.image.transformer, "model.text": model.text.transformer}
    if model.captioner:
        stacks["model.captioner"] = model.captioner.transformer
    for path, stack in stacks.items():
        if stack.width % stack.heads:
            raise ConfigError(f"{path}.transformer.heads: {stack.heads} does not divide width {stack.width}.")
    image = model.image
    if image.image_size % image.patch_size:
        down = image.image_size // image.patch_size * image.patch_size
        raise ConfigError(
            f"model.image.image_size: {image.image_size} is not a multiple of patch_size {image.patch_size}; "
            f"use {' or '.join(str(s) for s in (down, down + image.patch_size) if s)}."
        )
    if image.keep_tokens < 1 and image.pool == "concatenate":
        raise ConfigError(
            f"model.image.keep_tokens: {image.keep_tokens}, but pool='concatenate' reads every patch in its place; "
            "use pool='mean'."
        )
    shares = {"model.image.keep_tokens": image.keep_tokens}
    if model.captioner:
        shares["model.captioner.keep_image_tokens"] = model.captioner.keep_image_tokens
    for path, share in shares.items():
        if not 0 < share <= 1:
            raise ConfigError(f"{path}: {share} is not a share above 0, up to 1.")
    if image.positions == "sincos2d" and image.transformer.width % 4:
        raise ConfigError(f"model.image.transformer.width: {image.transformer.width} must divide by 4 for sincos2d.")


def _check_data(data: DataConfig) -> None:
    for name, text in data.texts.items():
        if text.length < 1:
            raise ConfigError(f"data.texts.{name}.length: {text.length}; use 1 or more.")
        if text.fallback and text.fallback not in data.texts:
            raise ConfigError(f"data.texts.{name}.fallback: {text.fallback!r} is not one of {sorted(data.texts)}.")
        for other in text.among:
            if other not in data.texts or other == name:
                raise ConfigError(f"data.texts.{name}.among: {other!r} is not another of {sorted(data.texts)}.")
    total = sum(source.weight for source in data.mixture.values())
    for name, source in data.mixture.items():
        path = f"data.mixture.{name}"
        if not source.weight > 0 or source.weight < SMALLEST_SHARE * total:
            raise ConfigError(
                f"{path}.weight: {source.weight} of {total} in all; use more than {SMALLEST_SHARE:.2%} of the sum, or "
                "leave the data set out."
            )
        unknown = [text for text in source.texts if text not in data.texts]
        if unknown:
            raise ConfigError(f"{path}.texts.{unknown[0]}: no such text; data.texts has {sorted(data.texts)}.")
    for key, (low, high) in (("crop_area", data.crop_area), ("crop_ratio", data.crop_ratio)):
        if not 0 < low <= high or (key == "crop_area" and high > 1):
            raise ConfigError(f"data.{key}: {(low, high)} is not a range (crop_area lies within 0 to 1).")
    for key in ("jitter_probability", "grayscale_probability", "max_bad_fraction"):
        if not 0 <= getattr(data, key) <= 1:
            raise ConfigError(f"data.{key}: {getattr(data, key)} is not within 0 to 1.")


def _check_views(config: Config) -> None:
    objective, longest = config.objective, config.model.text.length
    if objective.contrastive != "none" and not objective.views:
        raise ConfigError(f"objective.views: the {objective.contrastive} loss needs at least one view.")
    for name, view in objective.views.items():
        path = f"objective.views.{name}"
        missing = [source for source in view.sources if source not in config.data.texts]
        if missing:
            raise ConfigError(f"{path}.sources.{missing[0]}: no such text; data.texts has {sorted(config.data.texts)}.")
        total = sum(view.sources.values())
        if abs(total - 1) > 1e-6 or min(view.sources.values()) < 0:
            raise ConfigError(f"{path}.sources: the probabilities sum to {total}, not 1.")
        if name == "image":
            raise ConfigError(f"{path}: a view cannot be called image; the captioner's picture is.")
        if not config.model.text.mask_padding and view.length != longest:
            raise ConfigError(
                f"{path}.length: {view.length}, but without model.text.mask_padding padding is part of the text, so "
                f"every view must be model.text.length = {longest} long."
            )
        if view.length > longest:
            raise ConfigError(f"{path}.length: {view.length} does not fit model.text.length {longest}.")
        if not 1 <= view.tokens_kept <= view.length - SPECIALS_PER_SEQUENCE:
            raise ConfigError(
                f"{path}.budget: {view.tokens_kept} tokens and {SPECIALS_PER_SEQUENCE} special ones do not fit a "
                f"length of {view.length}; use a budget of at most {view.length - SPECIALS_PER_SEQUENCE}."
            )
        if view.sentences < 0 or view.weight < 0:
            raise ConfigError(f"{path}: sentences and weight cannot be negative.")
    if objective.contrastive != "none" and sum(view.weight for view in objective.views.values()) <= 0:
        raise ConfigError("objective.views: at least one view needs a weight above 0.")


def _check_packing(config: Config) -> None:
    packing, views = config.model.text.packing, config.objective.views
    if packing is None or not views:
        return
    path = "model.text.packing"
    if not config.model.text.mask_padding:
        raise ConfigError(f"{path}: without model.text.mask_padding padding is part of a text; set {path} to None.")
    if packing.group < 1 or packing.tokens_per_example < SPECIALS_PER_SEQUENCE + 1:
        raise ConfigError(f"{path}: group must be 1 or more, tokens_per_example {SPECIALS_PER_SEQUENCE + 1} or more.")
    longest = max(view.length for view in views.values())
    if packing.row_length < longest:
        raise ConfigError(f"{path}.row_length: {packing.row_length} does not hold a view of {longest} tokens.")
    # Even if every text is cut to one token of its own there must be room for all: packing.pack cuts no further.
    rows = -(-packing.group * packing.tokens_per_example // packing.row_length)
    texts = packing.group * len(views)
    if rows * (packing.row_length // (SPECIALS_PER_SEQUENCE + 1)) < texts:
        raise ConfigError(
            f"{path}.tokens_per_example: {packing.tokens_per_example} is {rows} rows of {packing.row_length} a group: "
            f"too few for {texts} texts; use about half of the views' lengths together."
        )
    captioner = config.model.captioner
    if captioner and captioner.every > 0 and packing.group % captioner.every:
        raise ConfigError(
            f"{path}.group: {packing.group} is not a multiple of model.captioner.every {captioner.every}."
        )


def _check_captioner(config: Config) -> None:
    captioner = config.model.captioner
    if captioner is None:
        if config.objective.contrastive == "none":
            raise ConfigError("objective.contrastive: 'none' without a captioner leaves nothing to train.")
        return
    text = config.data.texts.get(captioner.target)
    if text is None:
        raise ConfigError(
            f"model.captioner.target: {captioner.target!r} is not a text; data.texts has {sorted(config.data.texts)}."
        )
    if captioner.target_length < 2 or text.length < captioner.target_length:
        # With fewer tokens shipped, a text that was cut could not be told from one that ends, and would get an EOS.
        raise ConfigError(
            f"model.captioner.target_length: {captioner.target_length} is more than "
            f"data.texts.{captioner.target}.length = {text.length}; use at most that, and at least 2."
        )
    if captioner.condition_length and captioner.condition_length < SPECIALS_PER_SEQUENCE:
        raise ConfigError(
            f"model.captioner.condition_length: {captioner.condition_length}; use {SPECIALS_PER_SEQUENCE} or more, "
            "or 0 for the whole view."
        )
    if captioner.every < 1:
        raise ConfigError(f"model.captioner.every: {captioner.every}; use 1 or more.")
    known = {"image", *config.objective.views}
    for name in captioner.condition_on:
        if name not in known:
            raise ConfigError(f"model.captioner.condition_on: {name!r} is not one of {sorted(known)}.")
    if "image" not in captioner.condition_on:
        raise ConfigError("model.captioner.condition_on: 'image' must be among them.")


def _check_evaluation(config: Config) -> None:
    evaluation, best = config.evaluation, config.checkpoint.keep_best
    if best:
        kinds = ("retrieval", "classification", "caption_loss")
        names = [f"{kind}/{name}" for kind in kinds for name in getattr(evaluation, kind)]
        if not any(best.startswith(f"{name}/") for name in names):
            raise ConfigError(f"checkpoint.keep_best: {best!r} is no result of the evaluators {names}.")
        if not evaluation.every_steps:
            raise ConfigError("checkpoint.keep_best: needs evaluations during training; set evaluation.every_steps.")
    if not config.objective.views and (evaluation.retrieval or evaluation.classification):
        raise ConfigError("evaluation: retrieval and classification need a text tower, and objective.views is empty.")
    for name, part in evaluation.classification.items():
        wrong = [template for template in part.templates if template.count("{}") != 1]
        if wrong or not part.templates:
            raise ConfigError(f"evaluation.classification.{name}.templates: {wrong[:1]} must hold one {{}} each.")
