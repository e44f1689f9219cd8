"""Splits as TFDS writes them, and beside that the smaller of a number and a share.

`train[:min(1000,10%)]` is the first 1,000 records or the first tenth, whichever is less: a config can hold records out
of training whatever the size of the data set.
"""

import re
from collections.abc import Callable

_SMALLER = re.compile(r"min\((\d+),(\d+)%\)")


def absolute_split(split: str, count: Callable[[str], int]) -> str:
    """The split with every `min(NUMBER,PERCENT%)` worked out, at least 1: as TFDS understands it.

    Args:
      split: such as "train[:90%]" or "train[min(1000,10%):]+test".
      count: how many records a whole split has; called only where it matters.
    """
    parts = []
    for part in split.replace(" ", "").split("+"):
        name = part.partition("[")[0]
        parts.append(
            _SMALLER.sub(
                lambda found, name=name: str(max(1, min(int(found[1]), count(name) * int(found[2]) // 100))), part
            )
        )
    return "+".join(parts) if _SMALLER.search(split.replace(" ", "")) else split
