"""Sentence boundaries of a text, for the sub-caption mask.

The released CLIPS code splits at every "." and "!", which also cuts "3.5" and "e.g."; the rules here do not.
"""

import re

# Abbreviations, lower-case and without the last full stop. Small on purpose: what captions use.
# After these the sentence always goes on: a name or an explanation follows.
_GOES_ON = frozenset(
    "mr mrs ms mx dr prof st mt gen gov sen rep capt cmdr lt col sgt rev hon messrs e.g i.e eg ie vs v cf viz ca "
    "approx incl esp".split()
)
# After these it goes on before a number: "No. 5", "Jan. 3".
_BEFORE_NUMBER = frozenset(
    "no nos fig figs vol ch p pp sec eq art op jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
# After these it goes on unless a capital letter follows.
_MAY_END = frozenset("etc inc ltd co corp jr sr bros dept est ft a.m p.m al".split())
# After initials and dotted acronyms ("J. Smith", "U.S. Army") it ends only before one of these.
_STARTERS = frozenset(
    "a an the this that these those it its he she they we you his her their there here in on at by with from to under "
    "behind above below while when if as and but or for however overall another each some both one two most".split()
)

_OPEN_STOPS = "\u3002\uff01\uff1f\uff61\u0964\u061f\u06d4"  # 。！？｡ and Devanagari, Arabic, Urdu: need no space after
_STOPS = ".!?\u2026" + _OPEN_STOPS
_CLOSING = "\"'\u2019\u201d\u00bb\u203a)\\]}\u300d\u300f\uff09\u3011\u300b"
# One character class in front lets the regular expression engine skip ahead quickly.
_CANDIDATE = re.compile(rf"[{_STOPS}\n](?:(?<!\n)[{_STOPS}]*(?P<closing>[{_CLOSING}]*))?")
_NEW_PARAGRAPH = re.compile(r"\n[^\S\n]*(?:\n|[-*\u2022\u2023\u25e6\u2013]\s|\d{1,3}[.)]\s)")
_NEXT_WORD = re.compile(r"[\s\"'(\[\u2018\u201c]*([^\W_]+)?")
_LIST_NUMBER = re.compile(r"(?:\d{1,3}|[A-Za-z])\Z")
_WORD = re.compile(r"\w")
_LONGEST_WORD = 40  # characters looked at before a full stop; assumption


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Character spans of the sentences of `text`, in order; together they cover everything but white space.

    A sentence ends at a run of `.`, `!`, `?` or `…` with its closing quotes and brackets if white space follows and
    it is no abbreviation, initial or list number; at 。！？ and their like without white space; at a blank line;
    and before a bullet or list number on a new line. What holds no word, as in "Wow! !!", joins the sentence before.

    >>> text = "It is 3.5 cm, e.g. small. Mr. Fox likes it!"
    >>> [text[start:end] for start, end in split_sentences(text)]
    ['It is 3.5 cm, e.g. small.', 'Mr. Fox likes it!']
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _CANDIDATE.finditer(text):
        if _ends(text, start, match):
            _add(spans, text, start, match.end())
            start = match.end()
    _add(spans, text, start, len(text))
    return spans


def _add(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    piece = text[start:end]
    body = piece.strip()
    if not body:
        return
    start += len(piece) - len(piece.lstrip())
    end = start + len(body)
    if spans and not _WORD.search(body):
        spans[-1] = (spans[-1][0], end)
    else:
        spans.append((start, end))


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the stop or line break of `match` ends the sentence that began at `start`."""
    run, closing = match[0], match["closing"]
    if run == "\n":
        return _NEW_PARAGRAPH.match(text, match.start()) is not None
    if run[0] in _OPEN_STOPS:
        return True
    if not text[match.end() : match.end() + 1].isspace():
        return match.end() == len(text)
    following = _NEXT_WORD.match(text, match.end())
    word = (following and following[1]) or ""
    if not word:
        return True
    if run != ".":
        # "Help!" he said, and "so ... yes", go on in lower case; "wow! nice" does not.
        return not (word[0].islower() and (closing or run in ("...", "\u2026")))
    return not _is_abbreviation(text[max(start, match.start() - _LONGEST_WORD) : match.start()], word)


def _is_abbreviation(before: str, word: str) -> bool:
    """Whether a full stop after `before` (the sentence so far, or its end) and before `word` belongs to a word."""
    if _LIST_NUMBER.match(before.lstrip()):
        return True
    words = before.rsplit(None, 1)
    last = words[-1].lstrip("\"'([{\u2018\u201c") if words else ""
    lower = last.lower()
    if lower in _GOES_ON:
        return True
    if lower in _BEFORE_NUMBER:
        return word[0].isdigit()
    if lower in _MAY_END:
        return not word[0].isupper()
    if len(last) == 1 or "." in last:
        parts = last.split(".")
        if all(len(part) == 1 and part.isalpha() for part in parts) and (last.isupper() or len(parts) > 1):
            return word.lower() not in _STARTERS or not word[0].isupper()
    return False
