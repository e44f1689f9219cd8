"""Runs the evaluators that a config lists."""

from collections.abc import Collection

from absl import logging

from clips_jax.config import Config, ConfigError
from clips_jax.data.triples import Records
from clips_jax.evaluators import Encoder, captioning, classification, pixel_baseline, retrieval
from clips_jax.evaluators.split import Splits

# By evaluator, "retrieval/NAME" and so on, then by metric.
Results = dict[str, dict[str, float]]


def evaluator_names(config: Config) -> list[str]:
    """What the config asks for: "retrieval/NAME", "classification/NAME", "caption_loss/NAME", "pixel_baseline/SPLIT".

    Headline retrieval comes first. A config without a captioner has no caption losses, whatever it lists, so that a
    method can be changed by one key.
    """
    evaluation = config.evaluation
    retrievals = sorted(evaluation.retrieval, key=lambda name: not evaluation.retrieval[name].headline)
    captions = evaluation.caption_loss if config.model.captioner else {}
    return [
        *(f"retrieval/{name}" for name in retrievals),
        *(f"classification/{name}" for name in evaluation.classification),
        *(f"caption_loss/{name}" for name in captions),
        *([f"pixel_baseline/{evaluation.pixel_baseline}"] if evaluation.pixel_baseline else []),
    ]


def check_evaluators(config: Config) -> None:
    """Opens the data of every evaluator; raises `ConfigError` or `FileNotFoundError` for what it lacks.

    A mistyped feature is then an error before training, not after it.
    """
    evaluation = config.evaluation
    for kind in ("retrieval", "classification", "caption_loss"):
        for name, part in getattr(evaluation, kind).items():
            wanted = {key: getattr(part, key, "") for key in ("text", "label", "leave_out")}
            records = Records(part.dataset or config.data.dataset, part.split, part.data_dir or config.data.data_dir)
            for key, feature in wanted.items():
                if feature and feature not in records.features:
                    raise ConfigError(
                        f"evaluation.{kind}.{name}.{key}: {feature!r} is not a feature; "
                        f"there are {', '.join(sorted(records.features))}."
                    )


def evaluate_all(
    config: Config, encoder: Encoder, only: Collection[str] | None = None, splits: Splits | None = None
) -> Results:
    """Results by evaluator name; a split's pictures are embedded once, however many evaluators use it.

    A retrieval by a text that no record has (a set without recaptions) has no result, and a warning says so.

    All processes call it together and get the same results. The pixel baseline does not depend on the model, so it is
    worth leaving out with `only` during training.

    Args:
      config: lists the evaluators.
      encoder: the model with the parameters to judge.
      only: the names to run, of `evaluator_names`; None runs all.
      splits: splits of this encoder, for callers that evaluate again or write a report: records and decoded pictures
        are reused, embeddings are made anew, for the parameters may have changed.

    Raises:
      ConfigError: a name in `only` that the config does not have, or a split without usable records.
    """
    names = evaluator_names(config)
    unknown = sorted(set(only or ()) - set(names))
    if unknown:
        raise ConfigError(f"no evaluator {unknown[0]!r}; the config has {names}.")
    splits = splits or Splits(config, encoder)
    splits.forget_embeddings()
    results = {}
    for name in names:
        if only is None or name in only:
            try:
                results[name] = _evaluate(name, config, encoder, splits)
            except retrieval.NoQueries as error:
                logging.warning("%s is left out: %s", name, error)
    return results


def _evaluate(full_name: str, config: Config, encoder: Encoder, splits: Splits) -> dict[str, float]:
    kind, name = full_name.split("/", 1)
    evaluation = config.evaluation
    if kind == "retrieval":
        part = evaluation.retrieval[name]
        return retrieval.evaluate(part, splits.get(part.split, part.dataset, part.data_dir), encoder)
    if kind == "classification":
        part = evaluation.classification[name]
        return classification.evaluate(part, splits.get(part.split, part.dataset, part.data_dir), encoder)
    if kind == "caption_loss":
        part = evaluation.caption_loss[name]
        return captioning.evaluate(config, splits.get(part.split, part.dataset, part.data_dir), encoder)
    return pixel_baseline.evaluate(config)


def headline_evaluators(config: Config) -> list[str]:
    """Retrieval evaluators marked as headline; the first one if none is; none without retrieval."""
    evaluators = config.evaluation.retrieval
    return [f"retrieval/{n}" for n, e in evaluators.items() if e.headline] or [f"retrieval/{n}" for n in evaluators][:1]


def headline(config: Config, results: Results) -> dict[str, float]:
    """R@1 both ways of the headline evaluators, for the progress line: {"retrieval/NAME/image_to_text/R@1": …}."""
    return {
        f"{name}/{direction}/R@1": results[name][f"{direction}/R@1"]
        for name in headline_evaluators(config)
        if name in results
        for direction in ("image_to_text", "text_to_image")
    }
