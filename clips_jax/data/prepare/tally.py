"""Counts with a few examples each, which add up over shards in a fixed order."""

import dataclasses
from typing import Any

EXAMPLES = 5


@dataclasses.dataclass
class Tally:
    """How often each name occurred, and the first keys it occurred for: {name: {"count": n, "examples": [key, …]}}."""

    counts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def add(self, name: str, key: str, count: int = 1) -> None:
        """Counts `name` for a key; "" is no example."""
        entry = self.counts.setdefault(name, {"count": 0, "examples": []})
        entry["count"] += count
        if key and len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(key.encode("utf-8", "replace").decode())  # printable, whatever the key was

    def merge(self, counts: dict[str, dict[str, Any]]) -> None:
        """Adds another tally's counts; its examples come after those that are here."""
        for name, other in counts.items():
            self.add(name, "", other["count"])
            examples = self.counts[name]["examples"]
            examples += other["examples"][: EXAMPLES - len(examples)]

    def total(self) -> int:
        """The sum of all counts."""
        return sum(entry["count"] for entry in self.counts.values())

    def as_json(self) -> dict[str, dict[str, Any]]:
        """The counts, the most frequent first, then by name."""
        return dict(sorted(self.counts.items(), key=lambda item: (-item[1]["count"], item[0])))
