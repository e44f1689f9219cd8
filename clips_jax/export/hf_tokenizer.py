"""Our tokenizers as a folder that Hugging Face transformers reads, so that open_clip makes the same token ids.

open_clip's "clips" mode takes pieces from the Hugging Face tokenizer and puts BOS, EOS, padding and CLS around them by
the names in `tokenizer_config.json`. Before that it cleans the text (ftfy, HTML entities, white space). WordPiece
models clean it so too; our SentencePiece models were trained without, so there the ids agree where cleaning changes
nothing, and where no letter carries a combining mark that normalisation keeps apart (`tokenizers` drops some of them).
"""

import dataclasses
import json
import os
from typing import Any

import sentencepiece
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from clips_jax.data.open_tokenizer import SENTENCEPIECE_FILE
from clips_jax.data.tokenizer import SentencePieceTokenizer
from clips_jax.data.wordpiece import WordPieceTokenizer
from clips_jax.export.error import CannotExport

_SPACE = "\u2581"  # SentencePiece's sign for a space
_UNIGRAM = 1  # TrainerSpec.ModelType


def write_tokenizer(tokenizer: SentencePieceTokenizer | WordPieceTokenizer, folder: str) -> None:
    """Writes the tokenizer's files into `folder`: those of transformers, and those that we read back.

    Raises:
      CannotExport: a SentencePiece model that is not a unigram model.
    """
    if isinstance(tokenizer, WordPieceTokenizer):
        _write_wordpiece(tokenizer, folder)
    else:
        _write_sentencepiece(tokenizer, folder)


def _write_wordpiece(tokenizer: WordPieceTokenizer, folder: str) -> None:
    names = tokenizer.special_names()
    pieces = tokenizer.vocabulary()
    with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{piece}\n" for piece in pieces)
    normalizer = tokenizer.normalization()
    _write_json(
        os.path.join(folder, "tokenizer_config.json"),
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normalizer["lowercase"],
            "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
            "strip_accents": normalizer["strip_accents"],
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
            **{f"{name}_token": names[name] for name in ("pad", "bos", "eos", "cls")},
            "model_max_length": 10**6,  # open_clip cuts; no warning about long texts
        },
    )


def _write_sentencepiece(tokenizer: SentencePieceTokenizer, folder: str) -> None:
    with open(os.path.join(folder, SENTENCEPIECE_FILE), "wb") as file:
        file.write(tokenizer.model_proto)
    fast, names = fast_tokenizer(tokenizer)
    fast.save(os.path.join(folder, "tokenizer.json"))
    _write_json(
        os.path.join(folder, "tokenizer_config.json"),
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{name}_token": piece for name, piece in names.items()},
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**6,
        },
    )


def fast_tokenizer(tokenizer: SentencePieceTokenizer) -> tuple[Tokenizer, dict[str, str]]:
    """A SentencePiece unigram model in the `tokenizers` library, and the names of its special tokens.

    Raises:
      CannotExport: another kind of model (BPE, word, char).
    """
    proto = _parse(tokenizer.model_proto)
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise CannotExport("the SentencePiece model is not a unigram model; only these can be written for open_clip.")
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_proto)
    # SentencePiece never finds special pieces in a text, `tokenizers` does: "</s>" must stay text, so they get names
    # that no text contains.
    special = {token: name for name, token in dataclasses.asdict(tokenizer.special).items()}
    special[processor.unk_id()] = "unk"
    pieces = []
    for i in range(processor.vocab_size()):
        hidden = i in special or processor.is_control(i) or processor.is_unused(i)
        name = f"<|clips:{special.get(i, i)}|>" if hidden else processor.id_to_piece(i)
        pieces.append((name, processor.get_score(i)))
    byte_fallback = any(processor.is_byte(i) for i in range(len(pieces)))
    fast = Tokenizer(models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=byte_fallback))
    spec = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    fast.normalizer = normalizers.Sequence(steps)
    scheme = "always" if spec.add_dummy_prefix else "never"
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=False)
    fast.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    # Special tokens beyond the model's pieces follow them in the order pad, bos, eos, cls: SentencePieceTokenizer's.
    names = {name: f"<|clips:{name}|>" for name in ("unk", "pad", "bos", "eos", "cls")}
    for name, token in dataclasses.asdict(tokenizer.special).items():
        fast.add_special_tokens([AddedToken(names[name], special=True, normalized=False)])
        if fast.token_to_id(names[name]) != token:
            raise CannotExport(f"special token {name}: id {fast.token_to_id(names[name])} there, {token} here.")
    return fast, names


def _parse(model_proto: bytes) -> Any:
    """The few fields of SentencePiece's ModelProto that its Python API does not give.

    The module generated for it wants a newer protobuf than TensorFlow allows, so the message is declared here, after
    sentencepiece_model.proto.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sentencepiece_fields.proto", package="clips_jax", syntax="proto2")

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        kind = file.message_type.add(name=name)
        for field_name, number, field_type, more in fields:
            added = kind.field.add(name=field_name, number=number, label=field.LABEL_OPTIONAL)
            added.type = field_type  # pyright: ignore[reportAttributeAccessIssue]
            if field_type == field.TYPE_MESSAGE:
                added.type_name = f".clips_jax.{more}"
            elif more:
                added.default_value = more

    message("TrainerSpec", ("model_type", 3, field.TYPE_INT32, "1"))
    message(
        "NormalizerSpec",
        ("precompiled_charsmap", 2, field.TYPE_BYTES, ""),
        ("add_dummy_prefix", 3, field.TYPE_BOOL, "true"),
        ("remove_extra_whitespaces", 4, field.TYPE_BOOL, "true"),
    )
    message(
        "ModelProto",
        ("trainer_spec", 2, field.TYPE_MESSAGE, "TrainerSpec"),
        ("normalizer_spec", 3, field.TYPE_MESSAGE, "NormalizerSpec"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName("clips_jax.ModelProto"))()
    found.ParseFromString(model_proto)
    return found


def _write_json(path: str, content: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
