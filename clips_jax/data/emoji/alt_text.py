"""Writes AltText: a short caption as noisy as what web pages give their pictures. A program, no model.

Kinds and their shares (assumptions, after the kinds of noise in web-crawled captions):

| share | kind          | example for the dog                            |
|-------|---------------|------------------------------------------------|
| 0.30  | name          | 'dog', 'a dog', 'picture of dog'                |
| 0.27  | web           | 'buy dog sticker free download'                 |
| 0.15  | alias         | 'poodle icon' (the name if there is no alias)   |
| 0.08  | case          | 'DOG', 'Dog Emoji', 'dOG'                       |
| 0.05  | file          | 'dog_face-72x72.png'                            |
| 0.05  | misspelt      | 'dgo icon' (two letters swapped, or one lost)   |
| 0.06  | keywords      | 'pet animal icon' (the name is not in it)       |
| 0.04  | uninformative | 'IMG_2041.png', 'image', '3.5 kB'               |
"""

from __future__ import annotations

from clips_jax.data.emoji.concepts import Concept
from clips_jax.data.emoji.dice import Dice

SHARES = {
    "name": 0.30,
    "web": 0.27,
    "alias": 0.15,
    "case": 0.08,
    "file": 0.05,
    "misspelt": 0.05,
    "keywords": 0.06,
    "uninformative": 0.04,
}

_NAME = ("{}", "{}", "{}", "a {}", "the {}", "picture of {}", "image of a {}", "{} drawing", "emoji {}", "cute {} icon")
_WEB = (
    "buy {} sticker free download",
    "{} emoji png",
    "{} icon png transparent background",
    "free {} clipart download",
    "{} vector icon - stock illustration",
    "{} emoji meaning copy and paste",
    "funny {} sticker for laptop",
    "best {} icon set 2024",
    "download {} svg and png | free icons",
    "{} emoji t-shirt, sizes S to XL",
    "small {} sticker pack of 12",
    "what does the {} emoji mean?",
)
_SUFFIXES = ("", "", " icon", " emoji", " sticker", " png", " clipart")
_EXTENSIONS = (".png", ".svg", "-72x72.png", "@2x.png", "_final.png", ".webp")


def kind_of(dice: Dice) -> str:
    """Draws a kind by `SHARES`."""
    at = dice.uniform()
    for kind, share in SHARES.items():
        if at < share:
            return kind
        at -= share
    return "name"  # rounding of the shares' sum


def _misspelt(name: str, dice: Dice) -> str:
    if len(name) < 4:
        return name
    at = 1 + dice.below(len(name) - 2)
    if dice.chance(0.5):
        return name[:at] + name[at + 1 :]
    return name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :]


def _uninformative(dice: Dice) -> str:
    number = dice.below(9000) + 1000
    return dice.pick(
        (
            f"IMG_{number}.png",
            f"image {number % 10}",
            "image",
            "icon",
            "click to enlarge",
            f"untitled-{number % 100}.png",
            f"{dice.uniform(1, 9):.1f} kB",
            f"DSC0{number}.JPG",
        )
    )


def write(concept: Concept, key: str, noise: float = 0.0) -> str:
    """The AltText of one picture; a function of the arguments only.

    Args:
      concept: what is drawn.
      key: of the text.
      noise: this share of the AltTexts, beyond `SHARES`, says nothing of the picture; the others stay as they are.
    """
    dice = Dice(f"alt text:{key}")
    kind, name = kind_of(dice), concept.name
    if noise and Dice(f"alt text, noise:{key}").chance(noise):
        kind = "uninformative"
    if kind == "web":
        return dice.pick(_WEB).format(name)
    if kind == "alias":
        return dice.pick(concept.aliases or (name,)) + dice.pick(_SUFFIXES)
    if kind == "case":
        cased = dice.pick((name.upper(), name.title(), name.swapcase()))
        return cased + dice.pick(("", "", " Emoji", " ICON"))
    if kind == "file":
        return name.lower().replace(" ", dice.pick("_-")) + dice.pick(_EXTENSIONS)
    if kind == "misspelt":
        return _misspelt(name, dice) + dice.pick(_SUFFIXES)
    if kind == "keywords":
        words = dice.sample(concept.keywords, 2 + dice.below(3)) or [concept.subgroup]
        return " ".join(words) + dice.pick(_SUFFIXES)
    if kind == "uninformative":
        return _uninformative(dice)
    return dice.pick(_NAME).format(name)
