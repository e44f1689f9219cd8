import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips_jax.data.sentences import split_sentences


def sentences(text):
    return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["It is 3.5 cm wide.", "It costs $1.99!", "Really?"],
        ["Sweets, e.g. a lollipop, i.e. sugar.", "Mr. Fox, Dr. Who and St. Nick like them."],
        ["Made in the U.S.", "The U.S. Army came at 5 p.m. and left."],
        ["A photo by J. R. Smith.", "It is sharp."],
        ["He shows apples, pears, etc.", "The rest is dark.", "Apples etc. are red."],
        ["See No. 5 and Fig. 3 on p. 7.", "They say no.", "Yes."],
        ["Wait... what?!", "Oh...", "Fine\u2026", "Good."],
        ['She said "Stop."', "(They left.)", "\u201cWhy?\u201d", "It is late.'"],
        ['"Help!" he cried.', "wow!", "nice."],
        ["all in lower case.", "a dog sits.", "a cat"],
        ["no full stop at all"],
        ["Visit www.example.com or file.txt now.", "Then go."],
        ["1. First step.", "2. Second step."],
        ["Wow! !! ...", "Great."],
        ["Version 2.", "In 2019.", "And A."],
    ],
)
def test_splits(expected):
    assert sentences(" ".join(expected)) == expected


def test_needs_no_space_after_cjk_stops():
    assert sentences("これは犬です。「猫！」です？終わり") == ["これは犬です。", "「猫！」", "です？", "終わり"]


def test_lines():
    text = "Title\n\nA soft\nwrap. Colours:\n- red\n- blue 2.5\n\u2022 green\n1. one\n2) two\nwrapped"
    expected = ["Title", "A soft\nwrap.", "Colours:", "- red", "- blue 2.5", "\u2022 green", "1. one"]
    assert sentences(text) == [*expected, "2) two\nwrapped"]


@pytest.mark.parametrize("text", ["", " ", "\n\t \n"])
def test_nothing_to_split(text):
    assert split_sentences(text) == []


def test_punctuation_alone_is_one_sentence():
    assert sentences(" ... !? ") == ["... !?"]


@given(st.one_of(st.text(), st.text(alphabet="aB1. \n!?…\"'()-。J")))
def test_spans_cover_all_but_white_space_in_order(text):
    spans = split_sentences(text)
    position = 0
    for start, end in spans:
        assert position <= start < end and not text[position:start].strip()
        assert not text[start].isspace() and not text[end - 1].isspace()
        position = end
    assert not text[position:].strip()


@given(st.lists(st.from_regex(r"[A-Z][a-z]{5,9}( [a-z]{5,9}){1,5}[.!?]", fullmatch=True), max_size=6))
def test_plain_sentences_come_back(expected):
    assert sentences(" ".join(expected)) == expected
