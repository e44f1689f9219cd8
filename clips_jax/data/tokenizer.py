"""Text to token ids and back, and the one place that knows the special tokens."""

import dataclasses
import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from clips_jax.data.sentences import split_sentences

# BOS, EOS and CLS: every encoded sequence carries these three.
SPECIALS_PER_SEQUENCE = 3

# Texts are cut to this many characters per token wanted before they are tokenized, so that a megabyte of markup costs
# no more than a caption. English pieces hold 4 to 5 characters and SentencePiece's longest 16, so the cut leaves the
# shipped tokens alone; only runs of unknown characters (one token each) or of white space can notice. Assumption.
CHARACTERS_PER_TOKEN = 50

# Names under which an existing model may carry the CLS token.
_CLS_PIECES = ("<cls>", "[CLS]")

_SPACE = "\u2581"  # SentencePiece's sign for a space
_NOT_SPELLED = "\uffff"  # stands for a piece that is not what it is called; a non-character, in no text

# SentencePiece's EM sums the counts of this many threads in order: a fixed number, whatever the machine, keeps the
# model a function of the texts. 16 is SentencePiece's own default.
_TRAINING_THREADS = 16


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that are not text.

    Attributes:
      pad: fills up a sequence.
      bos: begins an encoded sequence.
      eos: ends the text.
      cls: sits in the last position, where the text tower is pooled.
    """

    pad: int
    bos: int
    eos: int
    cls: int


class SentencePieceTokenizer:
    """A SentencePiece model as the package uses it. Picklable: an unpickled copy opens the model anew.

    Special tokens that the model lacks get ids beyond its own pieces, in the order pad, bos, eos, cls.

    Attributes:
      vocab_size: number of ids, appended special tokens included.
      special: ids of the special tokens.
    """

    def __init__(self, model_path: str):
        """Reads the model; raises `FileNotFoundError` or `ValueError` naming the path and how to train one."""
        hint = (
            f"Train one with: python -m clips_jax.data.train_tokenizer --dataset DATASET --texts alt_text,recaption "
            f"--output {model_path}"
        )
        try:
            with open(model_path, "rb") as file:
                self._model = file.read()
        except OSError as error:
            raise FileNotFoundError(f"No SentencePiece model at {model_path} ({error.strerror}). {hint}") from error
        try:
            self._open()
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"{model_path} is not a SentencePiece model ({error}). {hint}") from error
        processor = self._processor
        size = processor.vocab_size()
        found = {"pad": processor.pad_id(), "bos": processor.bos_id(), "eos": processor.eos_id(), "cls": -1}
        for piece in _CLS_PIECES:
            if found["cls"] < 0 and processor.id_to_piece(processor.piece_to_id(piece)) == piece:
                found["cls"] = processor.piece_to_id(piece)
        for name, token in found.items():
            if token < 0:
                found[name], size = size, size + 1
        self.vocab_size = size
        self.special = SpecialTokens(**found)

    def _open(self) -> None:
        import sentencepiece  # here, so that importing this file for its constants stays light

        if not self._model:
            raise ValueError("the file is empty")
        processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        self._processor: Any = processor
        # What each piece spells, and its length in characters.
        self._surfaces = []
        for token in range(processor.vocab_size()):
            is_text = not (processor.is_unknown(token) or processor.is_control(token) or processor.is_byte(token))
            self._surfaces.append(processor.id_to_piece(token) if is_text else _NOT_SPELLED)
        self._widths = np.array([len(surface) for surface in self._surfaces])

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "vocab_size": self.vocab_size, "special": self.special}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def model_proto(self) -> bytes:
        """The SentencePiece model, as in its file."""
        return self._model

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Sequences for the text tower: `[BOS] pieces [EOS] PAD … [CLS]`, CLS always in the last position.

        This is the layout of the released CLIPS weights. Long texts lose their end, never a special token.

        Args:
          texts: N texts.
          length: positions, special tokens included; at least 3.

        Returns:
          int32 (N, length).
        """
        if length < SPECIALS_PER_SEQUENCE:
            raise ValueError(f"length {length} has no room for BOS, EOS and CLS; use {SPECIALS_PER_SEQUENCE} or more.")
        room = length - SPECIALS_PER_SEQUENCE
        encoded = np.full((len(texts), length), self.special.pad, np.int32)
        pieces = self._processor.encode([_clean(text, length) for text in texts], return_type="numpy", num_threads=1)
        encoded[:, 0] = self.special.bos
        for row, ids in zip(encoded, pieces, strict=True):
            kept = min(len(ids), room)
            row[1 : 1 + kept] = ids[:kept]
            row[1 + kept] = self.special.eos
        encoded[:, -1] = self.special.cls
        return encoded

    def tokenize(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `length` pieces of each text, without special tokens, and the sentence each belongs to.

        The text is encoded whole; a token belongs to the sentence in which its characters begin. White space before
        a sentence counts as its own, as in SentencePiece's pieces.

        Args:
          texts: N texts.
          length: tokens kept per text.

        Returns:
          tokens: int32 (N, length), padded with PAD.
          sentence_ids: int32 (N, length), consecutive from 0 over the sentences that still have a token; -1 on padding.
        """
        tokens = np.full((len(texts), length), self.special.pad, np.int32)
        sentence_ids = np.full((len(texts), length), -1, np.int32)
        cleaned = [_clean(text, length) for text in texts]
        # One by one: a list is encoded in a thread made for it, which costs 5 µs a text more.
        pieces = [self._processor.encode(text)[:length] for text in cleaned]
        kept = np.array([len(ids) for ids in pieces], np.int64)
        if not kept.any():
            return tokens, sentence_ids
        # All texts' tokens in one row from here on: a few NumPy calls for 64 texts, not for each.
        filled = np.arange(length) < kept[:, None]
        flat = np.fromiter(itertools.chain.from_iterable(pieces), np.int32, int(kept.sum()))
        tokens[filled] = flat
        stops = np.cumsum(kept)
        starts = stops - kept
        widths = self._widths[flat]
        begins = np.cumsum(widths) - widths  # in characters of all texts, each with the space before its first piece
        opens = np.zeros(len(flat), np.int32)  # 1 where a sentence begins that is not its text's first
        ends: list[int] = []  # of sentences, counted like `begins`,
        limits: list[int] = []  # and where their text's tokens stop
        for text, ids, start, stop in zip(cleaned, pieces, starts.tolist(), stops.tolist(), strict=True):
            spans = split_sentences(text)[:-1] if ids else []
            if not spans:
                continue
            if self._spells(text, ids):
                before = int(begins[start]) + 1
                ends += [before + end for _, end in spans]
                limits += [stop] * len(spans)
            else:
                # Normalisation has moved characters: only SentencePiece knows where pieces begin, in bytes.
                found = self._processor.encode(text, return_type="proto").pieces[: len(ids)]
                byte_ends = [len(text[:end].encode()) for _, end in spans]
                sentences = np.searchsorted(byte_ends, [piece.begin for piece in found], side="right")
                opens[start + 1 : stop] = sentences[1:] > sentences[:-1]
        places = np.searchsorted(begins, ends)
        opens[places[places < limits]] = 1
        counts = np.cumsum(opens)
        sentence_ids[filled] = counts - np.repeat(counts[np.minimum(starts, len(flat) - 1)], kept)
        return tokens, sentence_ids

    def _spells(self, text: str, ids: list[int]) -> bool:
        """Whether these first pieces, one after the other, spell the text up to case: then normalisation moved nothing.

        The lengths of the pieces then tell where each begins, 3 times as fast as asking SentencePiece.
        """
        spelled = "".join(map(self._surfaces.__getitem__, ids))
        marked = _SPACE + text[: len(spelled)].replace(" ", _SPACE)
        if marked.startswith(spelled):
            return True
        lower = marked.lower()  # longer than `marked` if it has moved anything itself, as for "\u0130"
        return len(lower) == len(marked) and lower.startswith(spelled)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of one sequence of ids up to EOS, without special tokens; unknown pieces appear as "⁇"."""
        special, size = self.special, self._processor.vocab_size()
        pieces = []
        for token in np.asarray(ids).tolist():
            if token == special.eos:
                break
            if 0 <= token < size and token not in (special.pad, special.bos, special.cls):
                pieces.append(token)
        return self._processor.decode(pieces) if pieces else ""

    def unknown_share(self, texts: Sequence[str]) -> float:
        """The share of the texts' tokens that are the model's unknown token."""
        ids = [np.asarray(row) for row in self._processor.encode(list(texts), return_type="numpy", num_threads=1)]
        flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        return float(np.mean(flat == self._processor.unk_id())) if flat.size else 0.0

    def identity(self) -> dict[str, str | int]:
        """What must agree for two tokenizers to give the same ids; stored in checkpoints."""
        digest = hashlib.sha256(self._model).hexdigest()
        return {"kind": "sentencepiece", "sha256": digest, "vocab_size": self.vocab_size}


def _clean(text: str, length: int) -> str:
    """`text` cut to what `length` tokens can need, with lone surrogates (invalid in UTF-8) replaced."""
    text = text[: length * CHARACTERS_PER_TOKEN]
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "replace").decode()
    return text


def train_sentencepiece(texts: Iterable[str], model_path: str, vocab_size: int) -> None:
    """Trains a unigram model and writes it to `model_path` at once (temporary file, then rename).

    The same texts in the same order give the same bytes. Text is lower-cased and brought to NFKC form
    (`nmt_nfkc_cf`), as the released CLIPS weights' uncased vocabulary is. Ids: pad 0, unk 1, bos 2, eos 3, cls 4.
    There is no byte fallback: its 256 ids are a large part of a small vocabulary. What a character outside the
    vocabulary becomes is visible: the unknown token, "⁇" when decoded.

    Args:
      texts: the corpus; held in memory, as SentencePiece does.
      model_path: file to write; its folder is created.
      vocab_size: ids at most; a small corpus gives fewer.

    Raises:
      ValueError: no text in the corpus, or `vocab_size` cannot hold even its characters.
    """
    import sentencepiece

    corpus = [text for text in texts if text.strip()]
    if not corpus:
        raise ValueError(f"No text to train {model_path} from: every text is empty.")
    # Every character of the corpus becomes a piece if they are few (SentencePiece's advice for small alphabets);
    # otherwise, as with web text in all scripts, the rarest 0.05 % of the occurrences (its default) do not.
    characters = set().union(*map(set, corpus))
    coverage = 1.0 if len(characters) <= vocab_size // 4 else 0.9995
    folder = os.path.dirname(os.path.abspath(model_path))
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".tokenizer-", delete=False) as file:
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter(corpus),
                model_writer=file,
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=coverage,
                normalization_rule_name="nmt_nfkc_cf",
                pad_id=0,
                unk_id=1,
                bos_id=2,
                eos_id=3,
                control_symbols=[_CLS_PIECES[0]],
                num_threads=_TRAINING_THREADS,
                minloglevel=2,
            )
            file.close()
            os.chmod(file.name, 0o644)  # a temporary file is private
            os.replace(file.name, model_path)
        except RuntimeError as error:
            raise ValueError(f"Cannot train {vocab_size} pieces from {len(corpus)} texts: {error}") from error
        finally:
            if os.path.exists(file.name):
                os.remove(file.name)
