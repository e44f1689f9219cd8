"""BERT WordPiece, cleaned and laid out as the released CLIPS and OpenVision models want it."""

import dataclasses
import hashlib
import html
import json
import os
from collections.abc import Sequence
from typing import Any

import ftfy
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from clips_jax.data.sentences import split_sentences
from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE, SpecialTokens

LONGEST_WORD = 100  # characters; a longer word is one [UNK] (BERT)

# Names of the special tokens where a folder does not say. The stock BERT vocabulary has [unused0] and [unused1] where
# the released one has [bos] and [eos].
_NAMES = {"pad": ("[PAD]",), "bos": ("[bos]", "[unused0]"), "eos": ("[eos]", "[unused1]"), "cls": ("[CLS]",)}
_BERT_SPECIALS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")


def clean(text: str) -> str:
    """Broken encodings repaired (ftfy), HTML entities resolved twice, runs of white space made one space."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


class WordPieceTokenizer:
    """A WordPiece vocabulary as the package uses it; the counterpart of `SentencePieceTokenizer`.

    Attributes:
      vocab_size: number of ids.
      special: ids of the special tokens.
    """

    def __init__(self, path: str):
        """Reads a `vocab.txt`, a `tokenizer.json`, or a folder that holds one of them.

        `tokenizer_config.json` beside it says whether text is lower-cased and what the special tokens are called.

        Raises:
          FileNotFoundError: neither file is there. ValueError: it is no WordPiece vocabulary with special tokens.
        """
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        settings = _read_json(os.path.join(folder, "tokenizer_config.json"))
        self.file = _find(path)
        if self.file.endswith(".json"):
            self._tokenizer = _from_json(self.file)
        else:
            self._tokenizer = _from_vocabulary(self.file, settings)
        ids = {}
        for name, usual in _NAMES.items():
            wanted = settings.get(f"{name}_token")
            wanted = wanted.get("content") if isinstance(wanted, dict) else wanted
            found = [i for i in map(self._tokenizer.token_to_id, [wanted] if wanted else usual) if i is not None]
            if not found:
                raise ValueError(f"{self.file}: no {name} token; looked for {wanted or ' or '.join(usual)}.")
            ids[name] = found[0]
        self.special = SpecialTokens(**ids)
        # Special tokens are recognised in text too, as Hugging Face's BertTokenizer does.
        names = {str(self._tokenizer.id_to_token(i)) for i in ids.values()} | set(_BERT_SPECIALS)
        known = [name for name in sorted(names) if self._tokenizer.token_to_id(name) is not None]
        self._tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in known])
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """`[bos] pieces [eos] [PAD] … [CLS]`: int32 (len(texts), length); long texts lose their end."""
        if length < SPECIALS_PER_SEQUENCE:
            raise ValueError(f"length {length} has no room for BOS, EOS and CLS; use {SPECIALS_PER_SEQUENCE} or more.")
        room = length - SPECIALS_PER_SEQUENCE
        encoded = np.full((len(texts), length), self.special.pad, np.int32)
        encoded[:, 0], encoded[:, -1] = self.special.bos, self.special.cls
        for row, pieces in zip(encoded, self._pieces([clean(text) for text in texts]), strict=True):
            ids = pieces.ids[:room]
            row[1 : 1 + len(ids)] = ids
            row[1 + len(ids)] = self.special.eos
        return encoded

    def tokenize(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `length` pieces, and the sentence each belongs to: see `SentencePieceTokenizer.tokenize`."""
        tokens = np.full((len(texts), length), self.special.pad, np.int32)
        sentence_ids = np.full((len(texts), length), -1, np.int32)
        cleaned = [clean(text) for text in texts]
        for row, (text, pieces) in enumerate(zip(cleaned, self._pieces(cleaned), strict=True)):
            kept = min(len(pieces.ids), length)
            if kept:
                tokens[row, :kept] = pieces.ids[:kept]
                ends = [end for _, end in split_sentences(text)[:-1]]
                sentences = np.searchsorted(ends, [begin for begin, _ in pieces.offsets[:kept]], side="right")
                sentence_ids[row, 0] = 0
                np.cumsum(sentences[1:] > sentences[:-1], out=sentence_ids[row, 1:kept])
        return tokens, sentence_ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of one sequence of ids up to EOS, without special tokens."""
        kept = []
        for token in np.asarray(ids).tolist():
            if token == self.special.eos:
                break
            if 0 <= token < self.vocab_size and token not in (self.special.pad, self.special.bos, self.special.cls):
                kept.append(token)
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def unknown_share(self, texts: Sequence[str]) -> float:
        """The share of the texts' tokens that are [UNK]."""
        ids = [token for pieces in self._pieces([clean(text) for text in texts]) for token in pieces.ids]
        return ids.count(self._tokenizer.token_to_id("[UNK]")) / len(ids) if ids else 0.0

    def vocabulary(self) -> list[str]:
        """All pieces, by id."""
        return [str(self._tokenizer.id_to_token(i)) for i in range(self.vocab_size)]

    def special_names(self) -> dict[str, str]:
        """What the special tokens are called: by "pad", "bos", "eos", "cls"."""
        return {name: str(self._tokenizer.id_to_token(i)) for name, i in dataclasses.asdict(self.special).items()}

    def normalization(self) -> dict[str, Any]:
        """BERT's settings: "lowercase", "handle_chinese_chars", "strip_accents" (None: as lower-casing)."""
        return json.loads(self._tokenizer.to_str())["normalizer"]

    def identity(self) -> dict[str, str | int]:
        """What must agree for two tokenizers to give the same ids; stored in checkpoints."""
        deciding = [self.vocabulary(), self.normalization(), dataclasses.asdict(self.special)]
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
        return {"kind": "wordpiece", "sha256": digest, "vocab_size": self.vocab_size}

    def _pieces(self, cleaned: list[str]) -> list[Any]:
        return self._tokenizer.encode_batch(cleaned, add_special_tokens=False)


def _find(path: str) -> str:
    if not os.path.isdir(path):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"No WordPiece vocabulary at {path}.")
        return path
    for name in ("vocab.txt", "tokenizer.json"):
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise FileNotFoundError(
        f"{path} has neither vocab.txt nor tokenizer.json: a released model's tokenizer travels with it. Copy the "
        "vocabulary it was trained with there."
    )


def _read_json(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _from_vocabulary(path: str, settings: dict[str, Any]) -> Tokenizer:
    with open(path, encoding="utf-8") as file:
        vocabulary = {line.rstrip("\n"): number for number, line in enumerate(file)}
    if "[UNK]" not in vocabulary:
        raise ValueError(f"{path} is not a WordPiece vocabulary: it has no [UNK].")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),  # None: as lower-casing
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _from_json(path: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"{path} is not a tokenizer file: {error}") from error
    if not isinstance(tokenizer.model, models.WordPiece):
        raise ValueError(f"{path} holds a {type(tokenizer.model).__name__} tokenizer; WordPiece is what can be read.")
    return tokenizer
