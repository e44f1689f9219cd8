"""The manifest as text for a person."""

from typing import Any

_TABLE_ROWS = 30
_LONGEST_KEY = 40  # characters


def summary(manifest: dict[str, Any]) -> str:
    """A page of text: rows, reasons, repairs, duplicates, size, hash."""
    lines = [
        f"{manifest['name']} {manifest['version']}, split {manifest['split']}: {manifest['rows_out']} records of "
        f"{manifest['rows_in']} rows in {manifest['shards']} shards, {manifest['num_bytes'] / 1e6:.1f} MB",
    ]
    if manifest["join_rate"] is not None:
        lines.append(f"joined: {manifest['joined_rows']} rows, {100 * manifest['join_rate']:.2f} %")
    lines += manifest["remarks"]
    lines += _table("rejected", manifest["rejected"], manifest["rows_in"])
    lines += _table("normalised", manifest["normalised"], manifest["rows_out"])
    for name, entry in manifest["normalised"].items():
        if name.endswith(".empty") and entry["count"] == manifest["rows_out"]:
            lines.append(
                f"NO RECORD HAS A TEXT IN {name.removesuffix('.empty')}: is the field or column called otherwise?"
            )
    duplicates = {name: manifest[f"duplicate_{name}"] for name in ("images", "keys")}
    lines += _table("more than once (kept)", {k: v for k, v in duplicates.items() if v["count"]}, manifest["rows_out"])
    lines.append(f"hash {manifest['hash']}")
    return "\n".join(lines)


def _table(title: str, counts: dict[str, dict[str, Any]], rows: int) -> list[str]:
    if not counts:
        return [f"{title}: none"]
    width = max(map(len, counts))
    lines = [f"{title}:"]
    for name, entry in list(counts.items())[:_TABLE_ROWS]:
        share = f"{100 * entry['count'] / rows:.2f} %" if rows else ""
        lines.append(
            f"  {name:{width}} {entry['count']:>9} {share:>9}  {', '.join(map(_short, entry['examples'][:3]))}"
        )
    return lines


def _short(key: str) -> str:
    return key if len(key) <= _LONGEST_KEY else f"{key[: _LONGEST_KEY - 1]}…"
