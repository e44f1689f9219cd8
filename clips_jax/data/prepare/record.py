"""From a row to a record: which fields become which texts, each one clean."""

import dataclasses
import hashlib
import json
from typing import Any

from clips_jax.data import captions
from clips_jax.data.prepare import pictures
from clips_jax.data.prepare.rows import Row
from clips_jax.data.tars import Rejected

# A repair that says no more than that a row has no such text.
_MISSING = "missing_text"


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """Which fields of a row become the texts of a record.

    Attributes:
      alt_text, recaption: fields in order of preference; the first one that is not empty is taken.
      texts: fields that become text features of the same name.
      text_lists: fields that become lists of texts of the same name, such as several captions or rewrites.
      require_recaption: whether a row without a recaption is rejected.
    """

    alt_text: tuple[str, ...] = captions.ALT_TEXT_FIELDS
    recaption: tuple[str, ...] = captions.RECAPTION_FIELDS
    texts: tuple[str, ...] = ()
    text_lists: tuple[str, ...] = ()
    require_recaption: bool = False

    def names(self) -> tuple[str, ...]:
        """Every field that may be asked for, once."""
        return tuple(dict.fromkeys((*self.alt_text, *self.recaption, *self.texts, *self.text_lists)))


def make_record(row: Row, texts: TextOptions, picture: pictures.PictureOptions) -> tuple[dict[str, Any], list[str]]:
    """The record of a row, and what was normalised: names such as "picture.cmyk" or "alt_text.bytes_repr".

    Returns:
      {"id", "image" (bytes), "alt_text", "recaption", and the extra texts and lists}, notes.

    Raises:
      pictures.Refused: the row gives no record; beside the pictures' reasons "no_text" and "no_recaption".
    """
    notes: dict[str, None] = {}
    fields = {**{name.lower(): value for name, value in row.fields.items()}, **row.fields}  # TEXT, Caption
    record: dict[str, Any] = {"id": captions.clean(row.key)[0]}
    record["alt_text"] = _first(fields, texts.alt_text, "alt_text", notes)
    record["recaption"] = _first(fields, texts.recaption, "recaption", notes)
    if not record["recaption"]:
        if not record["alt_text"]:
            raise pictures.Refused(
                "no_text", f"neither an AltText nor a recaption in {', '.join(row.fields) or 'no field'}"
            )
        if texts.require_recaption:
            raise pictures.Refused("no_recaption", "its recaption is missing or empty")
    for name in texts.texts:
        record[name] = _first(fields, (name,), name, notes)
    for name in texts.text_lists:
        found = (_cleaned(value, name, notes) for value in _as_list(fields.get(name)))
        record[name] = [text for text in found if text]
        if not record[name]:
            notes[f"{name}.empty"] = None
    record["image"], picture_notes = pictures.plain(row.picture, row.extension, picture)
    return record, [*(f"picture.{note}" for note in picture_notes), *notes]


def with_picture(row: Row, picture: pictures.PictureOptions) -> tuple[dict[str, Any], list[str]]:
    """The record of a row that was a record before: only its picture may change."""
    image, notes = pictures.plain(row.picture, row.extension, picture)
    return {**row.fields, "image": image}, [f"picture.{note}" for note in notes]


def _first(fields: dict[str, Any], names: tuple[str, ...], target: str, notes: dict[str, None]) -> str:
    for name in names:
        for value in _as_list(fields.get(name)):
            text = _cleaned(value, target, notes)
            if text:
                return text
    notes[f"{target}.empty"] = None
    return ""


def _cleaned(value: Any, target: str, notes: dict[str, None]) -> str:
    text, repairs = captions.clean(value)
    notes.update((f"{target}.{repair}", None) for repair in repairs if repair != _MISSING)
    return text


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def record_hash(record: dict[str, Any]) -> bytes:
    """SHA-256 of everything in a record, whatever the order of its fields."""
    rest = {name: _jsonable(value) for name, value in record.items() if name != "image"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.sha256(b"%d:%b%b" % (len(text), text, record["image"])).digest()


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def rejected(row: Row, error: pictures.Refused) -> Rejected:
    """The entry of a refused row in the list of rejected rows."""
    return Rejected(row.key, error.reason, str(error))
