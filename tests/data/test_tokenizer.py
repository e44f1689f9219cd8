import os
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips_jax.data import tokenizer as tokenizer_module
from clips_jax.data.sentences import split_sentences
from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE, SentencePieceTokenizer, train_sentencepiece

sentencepiece = pytest.importorskip("sentencepiece")

WORDS = (
    "the a dog cat red blue round picture shows with of is on background colour left smiling face heart tree house "
    "circle bright dark light fills most upper half curaçao 3.5 mr. fox"
).split()


def corpus(seed=0, count=400):
    source = random.Random(seed)

    def sentence():
        return " ".join(source.choices(WORDS, k=source.randint(3, 9))).capitalize() + source.choice(".!?")

    return [" ".join(sentence() for _ in range(source.randint(1, 6))) for _ in range(count)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tokenizer") / "new_folder" / "tokenizer.model")
    train_sentencepiece(corpus(), path, 200)
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return SentencePieceTokenizer(path)


@pytest.fixture(scope="module")
def plain(path):
    return sentencepiece.SentencePieceProcessor(model_file=path)


def test_layout_of_an_encoded_sequence(tokenizer, plain):
    texts = ["", "a dog", "the red cat " * 20]
    encoded = tokenizer.encode(texts, 12)
    special = tokenizer.special
    assert encoded.shape == (3, 12) and encoded.dtype == np.int32
    assert encoded[0].tolist() == [special.bos, special.eos] + [special.pad] * 9 + [special.cls]
    pieces = plain.encode("a dog")
    padding = [special.pad] * (12 - SPECIALS_PER_SEQUENCE - len(pieces))
    assert encoded[1].tolist() == [special.bos, *pieces, special.eos, *padding, special.cls]
    assert encoded[2].tolist() == [special.bos, *plain.encode(texts[2])[:9], special.eos, special.cls]


def test_shortest_sequence(tokenizer):
    special = tokenizer.special
    assert tokenizer.encode(["a dog"], 3).tolist() == [[special.bos, special.eos, special.cls]]
    with pytest.raises(ValueError, match="length 2"):
        tokenizer.encode(["a dog"], 2)


def test_no_texts(tokenizer):
    assert tokenizer.encode([], 5).shape == (0, 5)
    tokens, sentence_ids = tokenizer.tokenize([], 5)
    assert tokens.shape == sentence_ids.shape == (0, 5)


def expected_sentence_ids(plain, text):
    """By SentencePiece's own offsets, token by token."""
    ends = [end for _, end in split_sentences(text)[:-1]]
    offsets = plain.encode(text, return_type="offset_mapping")["offsets"]
    raw = [sum(begin >= end for end in ends) for begin, _ in offsets]
    order = sorted(set(raw))
    return [order.index(number) for number in raw]


def check_tokenize(tokenizer, plain, texts, length):
    tokens, sentence_ids = tokenizer.tokenize(texts, length)
    assert tokens.dtype == sentence_ids.dtype == np.int32
    for row, text in enumerate(texts):
        ids = plain.encode(text)[:length]
        padding = length - len(ids)
        assert tokens[row].tolist() == ids + [tokenizer.special.pad] * padding
        assert sentence_ids[row].tolist() == expected_sentence_ids(plain, text)[:length] + [-1] * padding


@pytest.mark.parametrize("length", [1, 7, 64])
def test_tokens_and_sentence_ids(tokenizer, plain, length):
    odd = ["", "  ", "A dog.  A cat!\n\nThe ﬁsh… É", "犬です。猫。 A dog. 犬", " The dog. The cat.", "🐶. 🐱!"]
    check_tokenize(tokenizer, plain, corpus(1, 50) + odd, length)


@settings(deadline=None)
@given(st.lists(st.one_of(st.text(max_size=40), st.text(alphabet="adog. \n!。éﬁ…ⅧİΣ", max_size=40)), max_size=4))
def test_tokens_and_sentence_ids_of_any_text(tokenizer, plain, texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    check_tokenize(tokenizer, plain, texts, 16)


def test_sentence_ids_of_a_known_text(tokenizer):
    text = "The dog is 3.5. Mr. Fox! A tree"
    tokens, sentence_ids = tokenizer.tokenize([text], 64)
    parts = [tokenizer.decode(tokens[0][sentence_ids[0] == number]) for number in range(3)]
    assert parts == ["the dog is 3.5.", "mr. fox!", "a tree"]


def test_decode_inverts_encode(tokenizer):
    for text in corpus(2, 20):
        assert tokenizer.decode(tokenizer.encode([text], 200)[0]) == text.lower()
    assert tokenizer.decode([]) == "" and tokenizer.decode(tokenizer.encode([""], 8)[0]) == ""


def test_decode_stops_at_eos_and_shows_unknown_characters(tokenizer):
    dog = tokenizer.encode(["a dog"], 10)[0]
    assert tokenizer.decode(np.concatenate([dog, dog])) == "a dog"
    assert "⁇" in tokenizer.decode(tokenizer.encode(["a 犬"], 10)[0])
    assert tokenizer.unknown_share(["犬"]) > 0 and tokenizer.unknown_share(corpus()) == 0


@pytest.mark.parametrize("text", ["\ud800 a dog", "\u0000", "a\u0000b", "a" * 1_000_000, "犬" * 100_000, "\n" * 9999])
def test_hostile_texts_do_not_crash(tokenizer, text):
    assert tokenizer.encode([text], 16).shape == (1, 16)
    tokens, sentence_ids = tokenizer.tokenize([text], 16)
    assert np.array_equal(sentence_ids == -1, tokens == tokenizer.special.pad)


def test_pickled_copy_is_the_same(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.identity() == tokenizer.identity() and copy.special == tokenizer.special
    assert np.array_equal(copy.tokenize(corpus(3, 5), 32), tokenizer.tokenize(corpus(3, 5), 32))


def test_training_is_deterministic_and_identity_follows_the_model(path, tmp_path):
    again, other = str(tmp_path / "again.model"), str(tmp_path / "other.model")
    train_sentencepiece(iter(corpus()), again, 200)
    train_sentencepiece(corpus(4), other, 100)
    assert open(path, "rb").read() == open(again, "rb").read()
    identities = [SentencePieceTokenizer(model).identity() for model in (path, again, other)]
    assert identities[0] == identities[1] != identities[2]
    assert identities[0]["kind"] == "sentencepiece" and int(identities[0]["vocab_size"]) <= 200
    assert sorted(os.listdir(tmp_path)) == ["again.model", "other.model"]  # no temporary files


def test_ids_of_a_trained_model(tokenizer, plain):
    special = tokenizer.special
    assert (special.pad, special.bos, special.eos, special.cls) == (0, 2, 3, 4)
    assert tokenizer.vocab_size == plain.vocab_size()


def test_a_small_corpus_gives_a_small_vocabulary_and_an_impossible_one_an_error(tmp_path):
    path = str(tmp_path / "m.model")
    train_sentencepiece(["a dog", "a cat"], path, 2000)
    assert SentencePieceTokenizer(path).vocab_size < 50
    with pytest.raises(ValueError, match="every text is empty"):
        train_sentencepiece(["", "  "], path, 100)
    with pytest.raises(ValueError, match="Cannot train 6 pieces"):
        train_sentencepiece(["abcdefghijklmnopqrstuvwxyz"] * 5, path, 6)


def test_special_tokens_a_model_lacks_are_appended(tmp_path):
    path = str(tmp_path / "bare")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(corpus()), model_prefix=path, vocab_size=100, pad_id=-1, bos_id=-1, minloglevel=2
    )
    tokenizer = SentencePieceTokenizer(path + ".model")
    special = tokenizer.special
    assert (special.pad, special.bos, special.cls, tokenizer.vocab_size) == (100, 101, 102, 103)
    encoded = tokenizer.encode(["The dog"], 10)
    assert encoded.max() == special.cls and tokenizer.decode(encoded[0]) == "The dog"


def test_missing_or_invalid_model_names_path_and_command(tmp_path):
    path = tmp_path / "no.model"
    with pytest.raises(FileNotFoundError, match=r"no\.model.*clips_jax\.data\.train_tokenizer"):
        SentencePieceTokenizer(str(path))
    for content in (b"", b"not a model"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"no\.model.*clips_jax\.data\.train_tokenizer"):
            SentencePieceTokenizer(str(path))


def test_cutting_long_texts_leaves_the_shipped_tokens_alone(tokenizer, plain, monkeypatch):
    text = " ".join(corpus(5, 200))
    assert len(text) > 8 * tokenizer_module.CHARACTERS_PER_TOKEN
    check_tokenize(tokenizer, plain, [text], 8)
