"""Which tokenizer a path holds."""

import os

from clips_jax.data.tokenizer import SentencePieceTokenizer
from clips_jax.data.wordpiece import WordPieceTokenizer

Tokenizer = SentencePieceTokenizer | WordPieceTokenizer
SENTENCEPIECE_FILE = "tokenizer.model"


def open_tokenizer(path: str) -> Tokenizer:
    """A SentencePiece model, a WordPiece `vocab.txt` or `tokenizer.json`, or a folder with one of these.

    Raises:
      FileNotFoundError, ValueError: nothing there, or not a tokenizer; the message names the path and the fix.
    """
    if os.path.isdir(path):
        inside = os.path.join(path, SENTENCEPIECE_FILE)
        return SentencePieceTokenizer(inside) if os.path.isfile(inside) else WordPieceTokenizer(path)
    return WordPieceTokenizer(path) if path.endswith((".txt", ".json")) else SentencePieceTokenizer(path)
