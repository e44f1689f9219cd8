"""How much of a large product is in memory at a time."""


def largest_divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`, and at least 1."""
    return next(size for size in range(max(1, min(count, most)), 0, -1) if count % size == 0)
