"""Everything that a data set's file asks for, measured with one model."""

import fnmatch
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from clips_jax.config import ConfigError, RetrievalConfig
from clips_jax.evaluators import Encoder, classification, retrieval
from clips_jax.evaluators.bootstrap import interval_metrics
from clips_jax.evaluators.data_sets import (
    CaptioningTask,
    ClassificationTask,
    DataSet,
    KnnTask,
    ProbeTask,
    RecordsConfig,
    RetrievalTask,
    read_class_names,
    read_language_templates,
    read_languages,
    read_templates,
)
from clips_jax.evaluators.probes import linear_probe, nearest_neighbours
from clips_jax.evaluators.run import Results
from clips_jax.evaluators.sources import open_records
from clips_jax.evaluators.split import Split
from clips_jax.evaluators.written_captions import bleu_and_cider

_ALL = "*"


class SetEvaluation:
    """One data set under one encoder. All processes call the same methods and get the same results.

    Attributes:
      notes: what a reader of the numbers must know: what was skipped, what is not whole.
    """

    def __init__(self, name: str, data_set: DataSet, root: str, encoder: Encoder):
        """Opens the records.

        Args:
          name: the results go by it.
          root: folder that the set's paths are below; of "tfds" the TFDS folder.

        Raises:
          FileNotFoundError, ConfigError: not there, of another form, or not as many as there must be.
        """
        self._name, self._set, self._root, self._encoder = name, data_set, root, encoder
        self.notes: list[str] = []
        self._train: dict[str, Split] = {}
        self._split = self._open(data_set.records)
        self._check("records", len(self._split) + self._split.damaged, data_set.expected.images)

    def _open(self, config: RecordsConfig) -> Split:
        records, class_names = open_records(config, self._root)
        split = Split(records, self._encoder, class_names)
        if not len(split):
            raise ConfigError(f"{self._name}: no record of {config.path} can be read.")
        if split.damaged:
            self.notes.append(f"{self._name}: {split.damaged:,} damaged records of {config.path} are left out")
        return split

    def _check(self, what: str, found: int, expected: int) -> None:
        if expected and found != expected:
            raise ConfigError(
                f"{self._name}: {found:,} {what}, but the set has {expected:,}: its scores would not compare with "
                "others'. Complete it, or copy its file, change [expected], and name it something else."
            )

    def run(self, tasks: Collection[str] | None = None) -> Results:
        """Results by "TASK/SET", or "TASK/SET/LANGUAGE"; `tasks` None is all of the set's."""
        found: Results = {}
        for task in self._set.tasks:
            if tasks is None or task in tasks:
                for part, metrics in getattr(self, f"_{task}")(getattr(self._set, task)).items():
                    found[f"{task}/{self._name}{part}"] = metrics
        bad = np.flatnonzero(self._split.bad())
        if len(bad):
            shown = ", ".join(self._split.name(int(position)) for position in bad[:3])
            more = f" and {len(bad) - 3:,} more" if len(bad) > 3 else ""
            self.notes.append(f"{self._name}: {len(bad):,} pictures cannot be read and count as wrong: {shown}{more}")
        return found

    def bad_pictures(self) -> list[str]:
        """Names of all pictures that could not be read."""
        return [self._split.name(int(position)) for position in np.flatnonzero(self._split.bad())]

    def _retrieval(self, task: RetrievalTask) -> Results:
        if _ALL not in task.text:
            return {"": self._retrieve(task.text, task.sentence)}
        before, after = task.text.split(_ALL, 1)
        features = [name for name in self._split.features[0] if fnmatch.fnmatchcase(name, task.text)]
        there = {name[len(before) : len(name) - len(after)]: name for name in features}
        missing = [language for language in task.languages if language not in there]
        if missing or not there:
            raise ConfigError(f"{self._name}: no texts {missing[:1] or task.text!r}; languages are {sorted(there)}.")
        found = {
            f"/{language}": self._retrieve(there[language], task.sentence)
            for language in task.languages or sorted(there)
        }
        return found | {"/mean": _mean(found, "n_images")}

    def _retrieve(self, text: str, sentence: int) -> dict[str, float]:
        config = RetrievalConfig(split=self._set.records.split, text=text, sentence=sentence)
        metrics = retrieval.evaluate(config, self._split, self._encoder, intervals=True)
        self._check("texts", int(metrics["n_texts"]), self._set.expected.texts)
        texts = retrieval.find_queries(config, self._split).texts
        # The last place before CLS is padding, as in an empty text, unless the text reaches it.
        tokens, empty = self._encoder.token_ids(texts), self._encoder.token_ids([""])
        full = int((tokens[:, -2] != empty[0, -2]).sum())
        if full:
            self.notes.append(
                f"{self._name}: {full:,} of {len(texts):,} different texts in {text!r} fill the text tower's "
                f"{tokens.shape[1]} tokens; what is beyond is not read"
            )
        return metrics | {"texts_filling_the_window": full}

    def _labels(self, split: Split, feature: str, names: list[str]) -> np.ndarray:
        """Class numbers: the feature's own, or the places of its values among `names`."""
        values = split.column(feature)
        if not all(_is_number(value) for value in values):
            place = {name: number for number, name in enumerate(names)}
            unknown = sorted({str(value) for value in values} - place.keys())
            if unknown:
                raise ConfigError(f"{self._name}: {feature!r} is {unknown[0]!r}, which is none of {names[:20]}.")
            return np.asarray([place[str(value)] for value in values])
        labels = np.asarray(values).astype(np.int64)
        if labels.min() < 0 or labels.max() >= len(names):
            raise ConfigError(
                f"{self._name}: {feature!r} runs from {labels.min()} to {labels.max()}; there are {len(names)} classes."
            )
        return labels

    def _own_names(self, split: Split, feature: str) -> list[str]:
        """The data's class names; of a column without any its values, or its numbers."""
        if split.has_class_names(feature):
            return split.class_names(feature)
        values = split.column(feature)
        if all(_is_number(value) for value in values):
            return [str(number) for number in range(max(int(value) for value in values) + 1)]
        return sorted({str(value) for value in values})

    def _classification(self, task: ClassificationTask) -> Results:
        own = self._own_names(self._split, task.label)
        names = read_class_names(task.class_names, self._root, own) if task.class_names else own
        self._check("classes", len(names), self._set.expected.classes)
        if self._split.has_class_names(task.label) and len(own) != len(names):
            raise ConfigError(
                f"{self._name}: the data has {len(own)} classes, class_names {len(names)} names: which is whose is not "
                f"known (there are {len(names)} classes). For a part of them: a JSON object from folder name to name."
            )
        templates = read_templates(task.templates, self._root)
        labels = self._labels(self._split, task.label, own if len(own) == len(names) else names)
        found = {"": self._classify(labels, list(range(len(names))), names, templates)}
        if task.languages:
            prompts = read_language_templates(task.language_templates, self._root) if task.language_templates else {}
            for language, (numbers, translated) in read_languages(task.languages, self._root).items():
                if not set(numbers) <= set(range(len(names))):
                    raise ConfigError(
                        f"{task.languages}: {language!r} names classes beyond the {len(names)} there are."
                    )
                found[f"/{language}"] = self._classify(labels, numbers, translated, prompts.get(language, templates))
            found["/mean"] = _mean({name: found[name] for name in found if "top1" in found[name] and name}, "n_classes")
        return found

    def _classify(
        self, labels: np.ndarray, numbers: list[int], names: list[str], templates: list[str]
    ) -> dict[str, float]:
        """Among the classes `numbers`, on the pictures of these classes only."""
        place = {number: index for index, number in enumerate(numbers)}
        kept = np.flatnonzero(np.isin(labels, numbers))
        if not len(kept):
            return {"n_images": 0, "n_classes": len(numbers)}
        embedded = classification.class_embeddings(names, templates, self._encoder)
        wanted = np.asarray([place[int(label)] for label in labels[kept]])
        metrics = classification.classification_metrics(
            self._split.embeddings()[kept], embedded, wanted, names, intervals=True
        )
        return metrics | {"n_templates": len(templates), "bad_images": int(self._split.bad()[kept].sum())}

    def _train_and_test(self, config: RecordsConfig, feature: str) -> tuple[Any, Any, int]:
        if str(config) not in self._train:
            self._train[str(config)] = self._open(config)
        train = self._train[str(config)]
        names, tested = self._own_names(train, feature), self._own_names(self._split, feature)
        if not set(tested) <= set(names) or (self._split.has_class_names(feature) and tested != names):
            raise ConfigError(f"{self._name}: training and test pictures have other classes: {names}, {tested}.")
        parts = [(split.embeddings(), self._labels(split, feature, names)) for split in (train, self._split)]
        return parts[0], parts[1], len(names)

    def _linear_probe(self, task: ProbeTask) -> Results:
        train, test, classes = self._train_and_test(task.train, task.label)
        return {"": linear_probe(train, test, classes, task.held_out)}

    def _knn(self, task: KnnTask) -> Results:
        train, test, classes = self._train_and_test(task.train, task.label)
        return {"": nearest_neighbours(train, test, classes, task.k, task.temperature)}

    def _captioning(self, task: CaptioningTask) -> Results:
        if not self._encoder.has_captioner:
            self.notes.append(f"{self._name}: the model has no captioner, so captioning is not measured")
            return {}
        split = self._split
        references = [[text] if isinstance(text, str) else list(text) for text in split.column(task.text)]
        references = [[text for text in some if text.strip()] for some in references]
        kept = [position for position, some in enumerate(references) if some]
        alt_texts = split.column(task.alt_text) if task.alt_text else [""] * len(split)
        given, wanted = [str(alt_texts[position]) for position in kept], [references[position] for position in kept]
        pairs = [(row, text) for row, some in enumerate(wanted) for text in some]
        losses, tokens = self._encoder.caption_loss(
            split.subset([kept[row] for row, _ in pairs]),
            len(pairs),
            [given[row] for row, _ in pairs],
            [text for _, text in pairs],
        )
        rows = [row for row, _ in pairs]
        loss, count = (np.bincount(rows, values.astype(np.float64), len(kept)) for values in (losses, tokens))
        written = self._encoder.captions(split.subset(kept), len(kept), given)
        metrics = {"loss": float(loss.sum() / count.sum())} | interval_metrics({"loss": (loss, count)}, scale=1)
        metrics |= {"n_images": len(kept), "n_texts": len(pairs), "n_tokens": int(count.sum())}
        metrics["bad_images"] = int(split.bad()[kept].sum())
        try:
            metrics |= bleu_and_cider(written, wanted)
        except ConfigError as error:
            self.notes.append(f"{self._name}: {error}")
        return {"": metrics}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) or (isinstance(value, str) and value.isdecimal())


def _mean(results: Mapping[str, Mapping[str, float]], choices: str) -> dict[str, float]:
    """The plain mean over languages of every score, without intervals; counts are sums. {} if there is no language.

    "chance" is the mean of what guessing one of `choices` gets, which the sum of these would not say.
    """
    if not results:
        return {}
    first, *_ = results.values()
    found = {"chance": float(np.mean([100 / metrics[choices] for metrics in results.values()]))}
    for key in first:
        values = [metrics[key] for metrics in results.values()]
        if not key.endswith(("/low", "/high")):
            counts = key.startswith(("n_", "bad_", "images_", "texts_"))
            found[key] = sum(values) if counts else float(np.mean(values))
    return found
