"""Data sets to evaluate on, as data: `sets/NAME.toml`, or a file of the user's. What a set is, no code per set.

A file says where the records are (`[records]`, below the user's `--data_root`), how many there must be (`[expected]`),
and what is measured on them (`[retrieval]`, `[classification]`, `[linear_probe]`, `[knn]`, `[captioning]`).
"""

import dataclasses
import json
import os
import tomllib
from importlib import resources
from typing import Any, Literal

from clips_jax.config import ConfigError
from clips_jax.config.parse import parse_dataclass


@dataclasses.dataclass(frozen=True)
class RecordsConfig:
    """Where records are. Paths are below the data root.

    Attributes:
      format: "captions_json": Karpathy's dataset_*.json or COCO captions, features "captions" (list) and "key".
        "folder": a folder per class, feature "label". "table": CSV, JSONL or parquet; columns are features, those
        inside an object are called "outer/inner". "tfds": a prepared TFDS set (ArrayRecord) in the data root.
        "tars": tar shards, features "id", "alt_text", "recaption", "label" and those of the samples' JSON.
      path: the JSON, the folder, the table, the TFDS name or the tars' pattern.
      split: Karpathy's or TFDS's split; "" is all (TFDS: "test").
      images: for captions_json and table: the folder that picture names are relative to.
      image: for table: the column that names the picture.
      image_file: for table: how that column's value becomes a file name, "{}" being the value.
      where: for table: only rows whose columns have these values.
      grouped: for table: rows that name the same picture are one record, whose features are lists; as where a row is a
        caption. Otherwise a row is a record.
    """

    format: Literal["captions_json", "folder", "table", "tfds", "tars"]
    path: str
    split: str = ""
    images: str = ""
    image: str = "image"
    image_file: str = "{}"
    where: dict[str, str] = dataclasses.field(default_factory=dict)
    grouped: bool = False


@dataclasses.dataclass(frozen=True)
class ExpectedConfig:
    """What must be there, so that a number is comparable; 0 is not checked. `images` counts records, readable or not;
    `texts` the captions of the retrieval task; `classes` class names."""

    images: int = 0
    texts: int = 0
    classes: int = 0


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """Image-text retrieval.

    Attributes:
      text: feature with the query, a string or a list. "*/caption" runs once per language: "*" is any name.
      sentence: index of the sentence used; -1 is the whole text, however long (the text tower cuts it).
      languages: those that "*" stands for; () is all there are.
    """

    text: str = "captions"
    sentence: int = -1
    languages: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """Zero-shot classification.

    Attributes:
      label: feature with the class number, or in a table the class's name.
      class_names: "" takes the data's own (folder names, TFDS class names); a built-in list (`--list`); a text file
        with a name per line; a JSON list, or a JSON object from folder name to name.
      templates: prompts with "{}", names of built-in sets of them, or text files with one per line. A class embedding
        is the normalised mean over them.
      languages: JSON object from language to [class numbers, names], as Babel-ImageNet has it: one more result per
        language, on the pictures of the classes that are named.
      language_templates: JSON object from language to prompts; languages that are not in it use `templates`.
    """

    label: str = "label"
    class_names: str = ""
    templates: tuple[str, ...] = ("{}",)
    languages: str = ""
    language_templates: str = ""


@dataclasses.dataclass(frozen=True)
class ProbeTask:
    """Linear probe: logistic regression on frozen image embeddings of `train`.

    Attributes:
      train: records to fit on.
      held_out: share of them on which the regularisation is chosen.
    """

    train: RecordsConfig
    label: str = "label"
    held_out: float = 0.1


@dataclasses.dataclass(frozen=True)
class KnnTask:
    """Nearest neighbours among frozen image embeddings of `train`, voting with exp(cosine / temperature) (Wu et al.
    2018; k and temperature as DINO, Caron et al. 2021)."""

    train: RecordsConfig
    label: str = "label"
    k: int = 20
    temperature: float = 0.07


@dataclasses.dataclass(frozen=True)
class CaptioningTask:
    """Cross-entropy per token, and BLEU-4 and CIDEr of written captions. `alt_text`: feature that the captioner is
    given; "" gives it an empty one."""

    text: str = "captions"
    alt_text: str = ""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One set.

    Attributes:
      description: what it is, and how to get it.
    """

    description: str
    records: RecordsConfig
    expected: ExpectedConfig = dataclasses.field(default_factory=ExpectedConfig)
    retrieval: RetrievalTask | None = None
    classification: ClassificationTask | None = None
    linear_probe: ProbeTask | None = None
    knn: KnnTask | None = None
    captioning: CaptioningTask | None = None

    @property
    def tasks(self) -> list[str]:
        """Names of what is measured."""
        names = ("retrieval", "classification", "linear_probe", "knn", "captioning")
        return [name for name in names if getattr(self, name) is not None]


def built_in(kind: Literal["sets", "templates", "class_names"]) -> dict[str, Any]:
    """By name the files that come with the package."""
    folder = resources.files("clips_jax.evaluators") / kind
    return {os.path.splitext(file.name)[0]: file for file in sorted(folder.iterdir(), key=lambda file: file.name)}


def read_data_set(name: str) -> tuple[str, DataSet]:
    """A built-in set, or the one in a TOML file; and the name its results go by.

    Raises:
      ConfigError: no such set, not TOML, or a key that means nothing.
    """
    known = built_in("sets")
    if name in known:
        content = known[name].read_bytes()
    elif name.endswith(".toml") and os.path.isfile(name):
        with open(name, "rb") as file:
            content = file.read()
    else:
        raise ConfigError(f"--set {name}: no such file, and no built-in set; these are {', '.join(known)}.")
    try:
        values = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--set {name}: not TOML: {error}") from error
    data_set = parse_dataclass(DataSet, values, "")
    if not data_set.tasks:
        raise ConfigError(f"--set {name}: measures nothing; add [retrieval], [classification] or another task.")
    return os.path.splitext(os.path.basename(name))[0], data_set


def read_templates(names: tuple[str, ...], root: str) -> list[str]:
    """Prompts, with built-in sets and files read; raises `ConfigError` for what is none of these."""
    known, found = built_in("templates"), []
    for name in names:
        if "{}" in name:
            found.append(name)
        elif name in known:
            found += _lines(known[name].read_text("utf-8"))
        else:
            found += _lines(_read(os.path.join(root, name), "templates", known))
    return found


def read_class_names(name: str, root: str, folders: list[str]) -> list[str]:
    """Names by class number.

    Args:
      name: as `ClassificationTask.class_names`, not "".
      root: where a file is looked for.
      folders: the data's own names, for a JSON object.
    """
    known = built_in("class_names")
    if name in known:
        return _lines(known[name].read_text("utf-8"))
    text = _read(os.path.join(root, name), "class_names", known)
    if not name.endswith(".json"):
        return _lines(text)
    found = _parse_json(text, name)
    if isinstance(found, dict):
        missing = [folder for folder in folders if folder not in found]
        if missing:
            raise ConfigError(f"class_names: {name} has no name for {missing[0]!r} ({len(missing)} are missing).")
        return [str(found[folder]) for folder in folders]
    return [str(value) for value in found]


def read_languages(name: str, root: str) -> dict[str, tuple[list[int], list[str]]]:
    """By language class numbers and their names; raises `ConfigError` if the file does not have this form."""
    found = _parse_json(_read(os.path.join(root, name), "languages", {}), name)
    languages = {}
    for language, value in found.items() if isinstance(found, dict) else ():
        numbers, names = value if isinstance(value, list) and len(value) == 2 else (None, None)
        if not isinstance(numbers, list) or not isinstance(names, list) or len(numbers) != len(names) or not names:
            raise ConfigError(f"languages: {name}, {language!r}: wants [[class numbers], [as many names]].")
        languages[language] = ([int(number) for number in numbers], [str(value) for value in names])
    if not languages:
        raise ConfigError(f"languages: {name}: wants an object from language to [[class numbers], [names]].")
    return languages


def read_language_templates(name: str, root: str) -> dict[str, list[str]]:
    """By language prompts."""
    found = _parse_json(_read(os.path.join(root, name), "language_templates", {}), name)
    if not isinstance(found, dict) or not all(isinstance(value, list) for value in found.values()):
        raise ConfigError(f"language_templates: {name}: wants an object from language to a list of prompts.")
    return {language: [str(prompt) for prompt in prompts] for language, prompts in found.items()}


def _read(path: str, key: str, known: dict[str, Any]) -> str:
    if not os.path.isfile(path):
        names = f", and nothing built in; that is {', '.join(known)}" if known else ""
        raise ConfigError(f"{key}: {path}: no such file{names}.")
    with open(path, encoding="utf-8-sig") as file:  # spreadsheets write a mark at the beginning
        return file.read()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _parse_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name}: not JSON: {error}") from error
