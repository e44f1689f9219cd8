"""Texts as they are found in web data, made clean: what a caption may be is `str`, whatever came in.

Meaning and language are left alone. Repaired: texts that are the Python representation of bytes, bytes that are not
UTF-8, control characters, spare white space, and texts that are too long to be captions.
"""

import ast
import math
import re
from typing import Any

# Longer texts are cut here: about 2,500 tokens, an order of magnitude more than any recaption. Assumption.
MAX_CHARACTERS = 10_000

# Fields that hold a sample's texts where nothing else is said, in order of preference; "txt" is a tar's .txt file.
ALT_TEXT_FIELDS = ("txt", "caption", "alt_text", "org_caption", "captions", "text", "title")
RECAPTION_FIELDS = ("re_caption", "recaption")

_WHOLE_BYTES = re.compile(r"""\s*[bB](?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*""", re.DOTALL)
# Inside a text only what holds an escaped byte is taken for one: "vitamin b'" stays.
_BYTES_WITHIN = re.compile(r"""\b[bB](?:'[^'\n]*?\\x[0-9a-fA-F]{2}[^'\n]*'|"[^"\n]*?\\x[0-9a-fA-F]{2}[^"\n]*")""")
# What prints nothing; tab, line feed and carriage return are white space.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPACES = re.compile(r"[ \t]+")
_AROUND_NEWLINE = re.compile(r" ?\n ?")


def clean(value: Any) -> tuple[str, list[str]]:
    """A text and the names of the repairs it took.

    Args:
      value: `str`, bytes, a number, None, NaN; anything else counts as missing.

    Returns:
      ("", ["missing_text"]) for None and NaN; else the text, which may be empty, with a list of "invalid_utf8",
      "bytes_repr", "number_as_text", "not_a_text", "control_characters", "white_space", "text_cut".
    """
    repairs: list[str] = []
    text = _as_text(value, repairs)
    if len(text) > MAX_CHARACTERS:  # first, so that nothing below works on megabytes
        text = text[:MAX_CHARACTERS]
        repairs.append("text_cut")
    if _WHOLE_BYTES.fullmatch(text) or ("\\x" in text and _BYTES_WITHIN.search(text)):
        text = _without_bytes_repr(text, repairs)
    if _SURROGATE.search(text):  # JSON can hold halves of surrogate pairs; UTF-8 cannot
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        repairs.append("invalid_utf8")
    if _CONTROL.search(text):
        text = _CONTROL.sub("", text)
        repairs.append("control_characters")
    tidy = _AROUND_NEWLINE.sub("\n", _SPACES.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))).strip()
    if tidy != text:
        repairs.append("white_space")
    return tidy, repairs


def _as_text(value: Any, repairs: list[str]) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            repairs.append("invalid_utf8")
            return bytes(value).decode("utf-8", "replace")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        repairs.append("missing_text")
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        repairs.append("number_as_text")
        return str(value)
    repairs.append("not_a_text")
    return ""


def _without_bytes_repr(text: str, repairs: list[str]) -> str:
    """`b'\\xc2\\xae'` becomes the character that these bytes are in UTF-8."""

    def decoded(match: re.Match[str]) -> str:
        try:
            data = ast.literal_eval(match[0].strip())
        except (ValueError, SyntaxError):  # such as a raw character beyond ASCII
            return match[0]
        return data.decode("utf-8", "replace")

    pattern = _WHOLE_BYTES if _WHOLE_BYTES.fullmatch(text) else _BYTES_WITHIN
    result = pattern.sub(decoded, text)
    if result != text:
        repairs.append("bytes_repr")
        if result.count("\ufffd") > text.count("\ufffd"):
            repairs.append("invalid_utf8")
    return result
