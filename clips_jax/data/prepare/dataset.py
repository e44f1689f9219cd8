"""The finished data set: TFDS' description of it, the manifest, the list of rejected rows."""

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

from clips_jax.data.prepare import storage
from clips_jax.data.prepare.plan import FILE_SUFFIX, Plan
from clips_jax.data.prepare.rows import Task
from clips_jax.data.prepare.shard import HASH_MODULUS
from clips_jax.data.prepare.tally import Tally
from clips_jax.data.tars import Rejected

_INFO = "dataset_info.json"
_FEATURES = "features.json"


@dataclasses.dataclass(frozen=True)
class Card:
    """What a data set says about itself, in TFDS' terms."""

    description: str = "Pictures with AltTexts and recaptions, prepared by clips_jax.data.prepare."
    citation: str = ""
    homepage: str = ""
    licence: str = ""


def read_card(folder: str, homepage: str = "", licence: str = "") -> Card:
    """The card in a folder laid out as TFDS lays out a data set's: README.md, CITATIONS.bib.

    Raises:
      FileNotFoundError: no README.md in it.
    """
    texts = []
    for name in ("README.md", "CITATIONS.bib"):
        path = os.path.join(folder, name)
        if name == "CITATIONS.bib" and not os.path.exists(path):
            texts.append("")
            continue
        if not os.path.exists(path):
            raise FileNotFoundError(f"--card {folder}: there is no README.md in it.")
        with open(path, encoding="utf-8") as file:
            texts.append(file.read())
    return Card(texts[0], texts[1], homepage, licence)


def manifest_path(plan: Plan) -> str:
    """Where the manifest of a split is."""
    return os.path.join(plan.folder, f"manifest-{plan.split}.json")


def rejected_path(plan: Plan) -> str:
    """Where the list of a split's rejected rows is."""
    return os.path.join(plan.folder, f"rejected-{plan.split}.jsonl")


def withdraw(plan: Plan) -> None:
    """Makes a split unknown to TFDS before its shards change; other splits stay."""
    storage.remove(manifest_path(plan))
    others = _other_splits(plan)
    if others:
        _write_info(plan, others, None)
    else:
        storage.remove(os.path.join(plan.folder, _INFO))


def check_features(plan: Plan) -> None:
    """Raises `ValueError` if another split of the set, prepared before, has other features."""
    path = os.path.join(plan.folder, _FEATURES)
    if _other_splits(plan) and storage.exists(path):
        with tempfile.TemporaryDirectory() as folder:
            plan.features().save_config(folder)
            if storage.read_json(os.path.join(folder, _FEATURES)) != storage.read_json(path):
                raise ValueError(
                    f"{plan.folder} has splits with other features. Prepare all splits with the same texts, or choose "
                    "another --name or --version."
                )


def finish(
    plan: Plan,
    tasks: list[Task],
    notes: list[dict[str, Any]],
    planned: Sequence[Rejected],
    duplicates: Any,
    card: Card,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes manifest, list of rejected rows and TFDS' description, the description last.

    Args:
      plan: the split.
      tasks: its tasks.
      notes: of its shards, in order.
      planned: what was rejected before any shard was made.
      duplicates: as `duplicates` counts them, examples as (shard, row).
      card: what the set says about itself.
      remarks: what a person should know about the run.

    Returns:
      the manifest.
    """
    _join_rejected(plan, len(tasks), planned)
    manifest = {**_manifest(plan, tasks, notes, planned, duplicates), "remarks": list(remarks)}
    if manifest["rows_out"]:
        import tensorflow_datasets as tfds

        split = tfds.core.SplitInfo(
            name=plan.split,
            shard_lengths=[note["rows_out"] for note in notes],
            num_bytes=manifest["num_bytes"],
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=_epath(plan.folder), dataset_name=plan.name, split=plan.split, filetype_suffix=FILE_SUFFIX
            ),
        )
        _write_info(plan, [*_other_splits(plan), split], card)
        _remove_stale(plan, len(tasks))
    storage.write_json(manifest_path(plan), manifest)
    return manifest


def _epath(path: str) -> Any:
    from etils import epath

    return epath.Path(path)


def _join_rejected(plan: Plan, count: int, planned: Sequence[Rejected]) -> None:
    with storage.whole_file(rejected_path(plan)) as path, open(path, "wb") as file:
        for rejected in planned:
            file.write(storage.json_line({**dataclasses.asdict(rejected), "input": ""}))
        for number in range(count):
            with storage.open_bytes(plan.work_path(number, count, "rejected.jsonl")) as part:
                shutil.copyfileobj(part, file, 1 << 20)


def _manifest(
    plan: Plan, tasks: list[Task], notes: list[dict[str, Any]], planned: Sequence[Rejected], duplicates: Any
) -> dict[str, Any]:
    rejected, normalised = Tally(), Tally()
    for entry in planned:
        rejected.add(entry.reason, entry.key)
    for note in notes:
        rejected.merge(note["rejected"])
        normalised.merge(note["normalised"])

    def total(name: str) -> int:
        return sum(note[name] for note in notes)

    rows_out, joinable = total("rows_out"), total("joinable")
    hash_sum = sum(int(note["hash_sum"], 16) for note in notes) % HASH_MODULUS
    return {
        "name": plan.name,
        "version": plan.version,
        "split": plan.split,
        "rows_in": total("rows_in") + len(planned),
        "rows_out": rows_out,
        "rejected_rows": rejected.total(),
        "rejected": rejected.as_json(),
        "normalised": normalised.as_json(),
        "join_rate": total("joined") / joinable if joinable else None,
        "joined_rows": total("joined"),
        "duplicate_images": _with_ids(plan, len(tasks), duplicates["image"]),
        "duplicate_keys": _with_ids(plan, len(tasks), duplicates["key"]),
        "hash": hashlib.sha256(f"{rows_out}:{hash_sum:064x}".encode()).hexdigest(),
        "shards": len(tasks),
        "image_bytes": total("image_bytes"),
        "num_bytes": total("num_bytes"),
        "worker_seconds": round(total("seconds"), 1),
        "source": plan.source_options(),
        "texts": dataclasses.asdict(plan.texts),
        "picture": dataclasses.asdict(plan.picture),
    }


def _with_ids(plan: Plan, count: int, found: dict[str, Any]) -> dict[str, Any]:
    """Examples by the `id` of the record instead of its place, where a single record can be read cheaply."""
    if not storage.is_local(plan.folder):
        return {
            "count": found["count"],
            "examples": [f"shard {shard}, record {row}" for shard, row in found["examples"]],
        }
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    features = plan.features()
    examples = []
    for shard, row in found["examples"]:
        with ArrayRecordDataSource([plan.shard_path(shard, count)]) as records:
            record = features.deserialize_example_np(records[row], decoders=_skip_decoding())
        examples.append(record["id"].decode() if "id" in record else f"{shard}:{row}")
    return {"count": found["count"], "examples": examples}


def _skip_decoding() -> Any:
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()}


def _other_splits(plan: Plan) -> list[Any]:
    """The prepared splits of the set but this one."""
    if not storage.exists(os.path.join(plan.folder, _INFO)):
        return []
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(plan.folder)
    return [split for name, split in builder.info.splits.items() if name != plan.split]


def _write_info(plan: Plan, splits: list[Any], card: Card | None) -> None:
    """Writes features.json and dataset_info.json; without a card, what is there is said again."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info
    from tensorflow_datasets.core.splits import SplitDict

    if card is None:
        old: Any = tfds.builder_from_directory(plan.folder)
        texts: dict[str, Any] = {"description": old.info.description, "citation": old.info.citation}
        texts |= {"homepage": old.info.homepage, "license": old.info.redistribution_info.license}
        features = old.info.features
    else:
        texts = {"description": card.description, "citation": card.citation}
        texts |= {"homepage": card.homepage, "license": card.licence}
        features = plan.features()
    identity = dataset_info.DatasetIdentity(
        name=plan.name, version=tfds.core.Version(plan.version), data_dir=plan.folder, module_name=__name__
    )
    info: Any = tfds.core.DatasetInfo(builder=identity, features=features, **texts)
    info.set_file_format(FILE_SUFFIX)
    info.set_splits(SplitDict(splits))
    with tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder)
        for name in sorted(os.listdir(folder), key=lambda name: (name == _INFO, name)):  # last: it makes the set known
            with storage.whole_file(os.path.join(plan.folder, name)) as path:
                shutil.copyfile(os.path.join(folder, name), path)


def _remove_stale(plan: Plan, count: int) -> None:
    """Removes this split's shards of a run with another number of shards, and what killed workers left."""
    wanted = {plan.shard_name(number, count) for number in range(count)}
    prefix = plan.shard_name(0, count).partition(FILE_SUFFIX)[0]
    for name in storage.names(plan.folder):
        if storage.INCOMPLETE in name or (name.startswith(prefix) and name not in wanted):
            storage.remove(os.path.join(plan.folder, name))
    for name in storage.names(plan.work):
        if storage.INCOMPLETE in name or ("-of-" in name and f"-of-{count:05d}." not in name):
            storage.remove(os.path.join(plan.work, name))
