"""Trains a SentencePiece model from the texts of a data set.

python -m clips_jax.data.train_tokenizer --dataset my_shards --vocab_size 8000
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from clips_jax.config import ConfigError, DataConfig, TokenizerConfig
from clips_jax.data.tar_records import is_tars
from clips_jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece
from clips_jax.data.triples import Records, tokenizer_path

_RECORDS_PER_READ = 1024
_SAMPLES = 3
_SAMPLE_LENGTH = 32


def read_texts(records: Records, names: Sequence[str], limit: int) -> Iterator[str]:
    """The texts called `names` of the records in order, empty ones left out; at most `limit` if it is above 0."""
    count = 0
    for start in range(0, len(records), _RECORDS_PER_READ):
        for record in records.read(range(start, min(start + _RECORDS_PER_READ, len(records)))):
            for name in names:
                for text in [record[name]] if isinstance(record[name], str) else record[name]:
                    if text.strip():
                        yield text
                        count += 1
                        if count == limit:
                            return


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the command line if None. Mistakes end it with a line that says which."""
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.data.train_tokenizer",
        description="Trains a SentencePiece model (unigram, lower-cased) from the texts of a data set. The same texts "
        "give the same model, byte for byte.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="TFDS 'name' or 'name/config'; 'emoji' is the built-in one")
    parser.add_argument("--split", default="train", help="split to read; slices such as 'train[:10%%]' work")
    parser.add_argument("--texts", default="alt_text,recaption", help="text features, separated by commas")
    parser.add_argument("--vocab_size", type=int, default=2000, help="pieces at most, special tokens included")
    parser.add_argument(
        "--output",
        default="",
        help="model file to write; '' is where training looks for it: tokenizer.model in the data set's folder",
    )
    parser.add_argument("--data_dir", default="", help="TFDS folder; '' is $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    parser.add_argument("--max_texts", type=int, default=0, help="texts used, from the first; 0 is all (in memory)")
    options = parser.parse_args(arguments)

    if is_tars(options.dataset) and not options.output:
        parser.error("--output: name the model file; tars have no folder of their own for it")
    try:
        _train(options, parser)
    except (ConfigError, FileNotFoundError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _train(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    names = [name.strip() for name in options.texts.split(",") if name.strip()]
    records = Records(options.dataset, options.split, options.data_dir)
    unknown = [name for name in names if name not in records.text_features]
    if unknown or not names:
        known = ", ".join(records.text_features)
        parser.error(f"--texts: {', '.join(unknown) or 'nothing'} is not among the texts of the data set: {known}")
    output = options.output or tokenizer_path(
        DataConfig(options.dataset, {}, data_dir=options.data_dir), TokenizerConfig()
    )
    texts = list(read_texts(records, names, options.max_texts))
    train_sentencepiece(texts, output, options.vocab_size)

    tokenizer = SentencePieceTokenizer(output)
    size = os.path.getsize(output)
    print(f"{output}: {tokenizer.vocab_size} pieces from {len(texts)} texts, {size} bytes.")
    print(f"Unknown tokens in these texts: {100 * tokenizer.unknown_share(texts):.3f} %.")
    for text in texts[:_SAMPLES]:
        tokens, sentences = tokenizer.tokenize([text], _SAMPLE_LENGTH)
        pieces = [tokenizer.decode([token]) for token in tokens[0][sentences[0] >= 0]]
        print(f"  {text[:100]!r} -> {' | '.join(pieces)}")


if __name__ == "__main__":
    main()
