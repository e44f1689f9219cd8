"""AdamW, the schedule, and which parameter gets what."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clips_jax.config import Config, ConfigError

# Decayed: matrices only ("weight decay 0.2 on kernels only", recipe). Every parameter matches exactly one rule.
DECAY_RULES = (
    (r".*/kernel$", "decay"),
    (r"captioner/head$", "decay"),
    (r".*/(bias|scale)$", "no_decay"),
    (r".*/(embedding|positions|queries|class_token)$", "no_decay"),
    (r"logit_(scale|bias)$", "no_decay"),
)


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as "image/transformer/blocks/mlp/up/kernel"."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)


def match_one(name: str, rules: tuple[tuple[str, Any], ...], purpose: str) -> Any:
    """The value of the one rule that matches; raises `ConfigError` if none or several do."""
    matches = [(pattern, value) for pattern, value in rules if re.search(rf"^(?:{pattern})", name)]
    if len(matches) != 1:
        found = "no rule matches" if not matches else "several rules match: " + ", ".join(p for p, _ in matches)
        raise ConfigError(f"{purpose} of parameter {name}: {found}; each parameter must match exactly one.")
    return matches[0][1]


def parameter_groups(params: Any, freeze: tuple[str, ...] = ()) -> Any:
    """A tree like `params` of "decay", "no_decay" or "frozen"; a freeze pattern that matches nothing is an error."""
    unused = set(freeze)

    def group(path: tuple[Any, ...], _: Any) -> str:
        name = path_name(path)
        frozen = [pattern for pattern in freeze if re.search(pattern, name)]
        unused.difference_update(frozen)
        kind = match_one(name, DECAY_RULES, "weight decay")
        return "frozen" if frozen else kind

    groups = jax.tree_util.tree_map_with_path(group, params)
    if unused:
        raise ConfigError(f"optimizer.freeze: {sorted(unused)[0]!r} matches no parameter.")
    return groups


def learning_rate_schedule(config: Config) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then cosine to 0 at the last step."""
    warmup_steps = config.optimizer.warmup_samples // config.batch_size
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else config.optimizer.learning_rate,
        peak_value=config.optimizer.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=config.total_steps,
    )


def make_optimizer(config: Config, params: Any) -> optax.GradientTransformation:
    """AdamW over the groups of `parameter_groups`; `params` may be shapes."""
    settings = config.optimizer
    groups = parameter_groups(params, settings.freeze)

    def adamw(weight_decay: float) -> optax.GradientTransformation:
        return optax.adamw(
            learning_rate_schedule(config),
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            mu_dtype=jnp.dtype(settings.mu_dtype),
            weight_decay=weight_decay,
        )

    by_group = optax.multi_transform(
        {"decay": adamw(settings.weight_decay), "no_decay": adamw(0.0), "frozen": optax.set_to_zero()}, groups
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), by_group) if settings.clip_norm else by_group
