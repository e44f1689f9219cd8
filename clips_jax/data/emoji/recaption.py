"""Writes the recaption: 5 to 8 sentences about one picture, 60 to 110 words. A program, no multimodal model.

In CLIPS the long caption is written by a multimodal model that looks at the picture. Here it is a program's
description, put together from

*   what is known of the concept: name, aliases, group, sub-group, keywords (`concepts.py`);
*   what is measured on the drawing's pixels: colours named in Lab space, size, aspect, fill, symmetry (`measure.py`);
*   the background that was painted (`backgrounds.py`).

Each *topic* below has several wordings; a hash of the record's id picks the wordings, the optional topics and the
order. Some sentences tell much (the opening, the keywords), some little (a remark); the name is in the opening, in the
category and, by chance, in others. Numbers such as '45.2', 'e.g.' and '!' occur, so that splitting into sentences has
something to get wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clips_jax.data.emoji.backgrounds import PICTURE_SIZE, Background
from clips_jax.data.emoji.concepts import Concept
from clips_jax.data.emoji.dice import Dice
from clips_jax.data.emoji.measure import Measurements

MIN_WORDS, MAX_WORDS = 60, 110
MIN_SENTENCES, MAX_SENTENCES = 5, 8

# Assumption: how often an optional sentence says the name instead of 'it'.
_NAME_AGAIN = 0.4
# Share of the recaptions that begin with their opening; the others have it anywhere (assumption).
OPENING_FIRST = 0.8
# Assumption: likeness with the mirror image above which people see symmetry.
_SYMMETRIC, _NEARLY_SYMMETRIC = 0.97, 0.88


def join(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def capital(sentence: str) -> str:
    """The sentence with its first letter large; the rest as it is."""
    return sentence[:1].upper() + sentence[1:]


def article(phrase: str) -> str:
    """The phrase with 'a' or 'an'."""
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


class _Writer:
    """One picture's facts and choices; each method writes one topic as one sentence, or '' when there is nothing."""

    def __init__(self, concept: Concept, measured: Measurements, background: Background, dice: Dice) -> None:
        self.concept, self.measured, self.background, self.dice = concept, measured, background, dice
        self.the = f"the {concept.name}"

    def subject(self) -> str:
        """The name, or a word that stands for it."""
        if self.dice.chance(_NAME_AGAIN):
            return self.the
        return self.dice.pick(("it", "it", "the drawing", "the motif"))

    def opening(self) -> str:
        name, subgroup = self.concept.name, self.concept.subgroup
        return self.dice.pick(
            (
                f"the picture shows {self.the}.",
                f"this is a drawing of {self.the}.",
                f"a small picture of {self.the}, the emoji.",
                f"here we see {self.the}, drawn as an emoji.",
                f"an emoji: {name}.",
                f"{self.the}, drawn in a simple style.",
                f"an icon from the {subgroup} family, namely {self.the}.",
                f"look, {self.the}!",
            )
        )

    def category(self) -> str:
        group, subgroup = self.concept.group, self.concept.subgroup
        return self.dice.pick(
            (
                f"{self.the} belongs to {group}, more exactly to {subgroup}.",
                f"among {group} one finds {self.the}, under {subgroup}.",
                f"{self.the} is sorted under {subgroup}, a part of {group}.",
                f"in emoji lists {self.the} stands under {group}, next to others of the kind {subgroup}.",
            )
        )

    def colours(self) -> str:
        shares = self.measured.colours
        if not shares:
            return ""
        (first, share), rest = shares[0], [name for name, s in shares[1:4] if s >= 0.03]
        percent = f"{100 * share:.1f}"
        if not rest:
            return self.dice.pick(
                (
                    f"{self.subject()} is {first} all over.",
                    f"{first} is the only colour of {self.the}, at {percent} % of the drawing.",
                    f"nearly everything about {self.the} is {first}.",
                )
            )
        return self.dice.pick(
            (
                f"{self.subject()} is mostly {first}, with {join(rest)}.",
                f"{first} covers {percent} % of {self.the}, followed by {join(rest)}.",
                f"the colours are {first} ({percent} %), then {join(rest)}.",
                f"{self.subject()} has a good deal of {first} and some {join(rest)}.",
                f"the main colours of {self.the} are {join([first, *rest])}.",
            )
        )

    def keywords(self) -> str:
        words = self.dice.sample(self.concept.keywords, 3 + self.dice.below(3))
        if len(words) < 2:
            return ""
        return self.dice.pick(
            (
                f"people look for {self.the} with words such as {join(words)}.",
                f"{self.subject()} makes one think of {join(words)}.",
                f"related words are, e.g. {join(words)}.",
                f"it goes with {join(words)}.",
            )
        )

    def alias(self) -> str:
        if not self.concept.aliases:
            return ""
        alias = self.dice.pick(self.concept.aliases)
        return self.dice.pick(
            (
                f"{self.the} is also called {alias}.",
                f"another name for {self.the} is {alias}.",
                f"some people write {alias} instead.",
            )
        )

    def shape(self) -> str:
        aspect, subject = self.measured.aspect, self.subject()
        fill = self.measured.fill
        filled = "fills nearly all of" if fill > 0.85 else "fills most of" if fill > 0.55 else "leaves much free in"
        if aspect > 1.08:
            return f"{subject} is {aspect:.1f} times as wide as it is tall and {filled} its box."
        if aspect < 0.93:
            return f"{subject} is {1 / aspect:.1f} times as tall as it is wide and {filled} its box."
        return f"{subject} is about as wide as it is tall and {filled} its box."

    def symmetry(self) -> str:
        sides, upside = self.measured.mirror_left_right, self.measured.mirror_top_bottom
        subject = self.subject()
        if sides >= _SYMMETRIC and upside >= _SYMMETRIC:
            return f"{subject} looks the same in a mirror and upside down."
        if sides >= _SYMMETRIC:
            return f"the left half of {subject} mirrors the right half."
        if upside >= _SYMMETRIC:
            return f"the upper half of {subject} mirrors the lower half."
        if sides >= _NEARLY_SYMMETRIC:
            return f"left and right of {subject} are nearly alike, but not quite."
        return self.dice.pick((f"{subject} is not symmetric.", f"{subject} has different left and right sides."))

    def size(self) -> str:
        m = self.measured
        share = 100 * m.fill * m.width * m.height / PICTURE_SIZE**2
        return self.dice.pick(
            (
                f"{self.subject()} measures {m.width} by {m.height} pixels.",
                f"about {share:.1f} % of the picture is covered by {self.the}.",
                f"at {m.width} by {m.height} pixels it suits small uses, e.g. a message or a label.",
            )
        )

    def backdrop(self) -> str:
        names = self.background.names
        if self.background.first == self.background.second:
            return self.dice.pick(
                (
                    f"the background is plain {names[0]}.",
                    f"behind {self.the} there is nothing but {names[0]}.",
                    f"it stands on {article(f'{names[0]} ground')}.",
                )
            )
        if len(names) == 1:
            return f"the background shades gently within {names[0]}."
        return self.dice.pick(
            (
                f"the background passes from {names[0]} to {names[1]}.",
                f"behind {self.the}, {names[0]} turns into {names[1]}.",
            )
        )

    def style(self) -> str:
        if self.measured.outline_only:
            return self.dice.pick(
                (f"{self.subject()} is drawn in black ink only.", "black lines and areas, no colour at all!")
            )
        n = sum(share >= 0.03 for _, share in self.measured.colours)
        if n <= 2:
            return f"{self.subject()} gets by with very few colours."
        return self.dice.pick((f"one can tell {n} colours apart.", f"{self.subject()} is drawn in {n} colours!"))

    def remark(self) -> str:
        return self.dice.pick(
            (
                "simple and clear!",
                "there is nothing else in the picture.",
                f"what a fine example of {self.the}!",
                f"that is all there is to see, i.e. just {self.the}.",
                "a picture like this fits any chat.",
                "no photograph, but a drawing.",
            )
        )


def _words(text: str) -> int:
    return len(text.split())


def sentences(
    concept: Concept, measured: Measurements, background: Background, key: str, opening_first: float = OPENING_FIRST
) -> list[str]:
    """The recaption's sentences: 5 to 8, together 60 to 110 words; a function of the arguments only."""
    dice = Dice(f"recaption:{key}")
    writer = _Writer(concept, measured, background, dice)
    opening, fixed = capital(writer.opening()), [capital(writer.category())]
    colours = writer.colours()
    fixed += [capital(colours)] if colours else []

    topics: list[Callable[[], str]] = [writer.alias, writer.shape, writer.symmetry, writer.size, writer.backdrop]
    topics += [writer.style, writer.remark]
    topics = dice.shuffled(topics)
    topics.insert(0, writer.keywords)  # the most telling one, when there are keywords
    target = MIN_SENTENCES + dice.below(MAX_SENTENCES - MIN_SENTENCES + 1)
    chosen = [s for s in (capital(topic()) for topic in topics) if s]

    body, left_out = list(fixed), []
    for sentence in chosen:
        total = _words(" ".join([opening, *body]))
        if len(body) + 1 < target and total + _words(sentence) <= MAX_WORDS:
            body.append(sentence)
        else:
            left_out.append(sentence)
    while left_out and _words(" ".join([opening, *body])) < MIN_WORDS:
        _lengthen(body, left_out, len(fixed))

    body = dice.shuffled(body)
    body.insert(0 if dice.chance(opening_first) else dice.below(len(body) + 1), opening)
    return body


def _lengthen(body: list[str], left_out: list[str], n_fixed: int) -> None:
    """Makes the body longer by one of the sentences left out: as a further one, or instead of the shortest one."""
    left_out.sort(key=_words)
    longest = left_out.pop()
    if len(body) + 1 < MAX_SENTENCES:  # 1: the opening
        body.append(longest)
        return
    shortest = min(range(n_fixed, len(body)), key=lambda i: _words(body[i]))
    body[shortest] = longest


def write(
    concept: Concept, measured: Measurements, background: Background, key: str, opening_first: float = OPENING_FIRST
) -> str:
    """The recaption as one text."""
    return " ".join(sentences(concept, measured, background, key, opening_first))
