"""Captions as the web holds them."""

import pytest

from clips_jax.data.captions import MAX_CHARACTERS, clean


@pytest.mark.parametrize(
    ("value", "text", "repairs"),
    [
        ("A dog on a beach.", "A dog on a beach.", []),
        ("犬が\u3000海辺にいる。", "犬が\u3000海辺にいる。", []),
        ("Two sentences.\nA new line.", "Two sentences.\nA new line.", []),
        (b"caf\xc3\xa9", "café", []),
        (b"caf\xe9 cr\xe8me", "caf\ufffd cr\ufffdme", ["invalid_utf8"]),
        ("half \ud83d a pair", "half \ufffd a pair", ["invalid_utf8"]),
        ("a \ud83d\ude00 pair", "a \U0001f600 pair", ["invalid_utf8"]),
        ("bytes \udce9 in a table", "bytes \ufffd in a table", ["invalid_utf8"]),
        (r"b'\xc2\xae'", "®", ["bytes_repr"]),
        (r"b'Caf\xc3\xa9 \xe2\x80\x93 menu'", "Café – menu", ["bytes_repr"]),
        ("b'plain'", "plain", ["bytes_repr"]),
        ("""b"it's \\xc3\\xa9" """, "it's é", ["bytes_repr"]),
        (r"Acme b'\xc2\xae' boots", "Acme ® boots", ["bytes_repr"]),
        (r"b'cut \xc3'", "cut \ufffd", ["bytes_repr", "invalid_utf8"]),
        ("vitamin b'12' and b", "vitamin b'12' and b", []),
        (r"C:\xampp\b", r"C:\xampp\b", []),
        ("b'never closed", "b'never closed", []),
        (" \t two\t words \r\n", "two words", ["white_space"]),
        ("nul\x00 and bell\x07", "nul and bell", ["control_characters"]),
        ("\ufeffmark", "mark", ["control_characters"]),
        ("", "", []),
        (" \n ", "", ["white_space"]),
        (None, "", ["missing_text"]),
        (float("nan"), "", ["missing_text"]),
        (42, "42", ["number_as_text"]),
        (True, "", ["not_a_text"]),
        ({"a": 1}, "", ["not_a_text"]),
        (["a"], "", ["not_a_text"]),
        ("x" * 200_000, "x" * MAX_CHARACTERS, ["text_cut"]),
    ],
)
def test_clean(value, text, repairs):
    assert clean(value) == (text, repairs)
    if text:
        assert clean(text) == (text, [])  # nothing is left to repair
        text.encode()


def test_hostile_texts_take_no_time():
    for text in ("b'" * 100_000, "b'\\" * 60_000, "\\x" * 100_000, " \n" * 100_000, "b'\\x41" * 30_000):
        clean(text)
