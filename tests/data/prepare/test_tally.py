"""Counts with examples."""

from clips_jax.data.prepare.tally import EXAMPLES, Tally


def test_tallies_add_up_in_order_and_print():
    first, second = Tally(), Tally()
    for number in range(4):
        first.add("a", f"k{number}")
        second.add("a", f"l{number}")
    second.add("b", "half \ud800 a pair")
    first.merge(second.counts)
    assert first.as_json() == {
        "a": {"count": 8, "examples": ["k0", "k1", "k2", "k3", "l0"]},
        "b": {"count": 1, "examples": ["half ? a pair"]},
    }
    assert first.total() == 9 and len(first.counts["a"]["examples"]) == EXAMPLES
