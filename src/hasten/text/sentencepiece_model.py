"""``read_sentencepiece``: the tokenizer of a SentencePiece model (Kudo and Richardson, 2018).

The file says how a text is normalized and split, so no class of transformers is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers
from tokenizers.models import BPE, Model, Unigram

from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.regular_file import has_file
from hasten.core.errors import CheckpointError
from hasten.text import sentencepiece_bpe
from hasten.text.sentencepiece_bpe import SPACE
from hasten.text.tokenizer_config import TokenizerConfig

FILE = "tokenizer.model"
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # SentencePiece.Type
_PROBES = ("a  b", " a", "a ", "two words", "The quick brown fox, 2023.", "x\ty\n\n z", "naïve 世界 😀", "   ")
_MAX_PROBED_PIECES = 16


def read_sentencepiece(folder: Path, config: TokenizerConfig) -> tuple[Tokenizer, Mapping[str, str]]:
    """Return the tokenizer and its named special tokens.

    Raises ``CheckpointError``, or an error of protobuf or tokenizers for a broken file.
    """
    proto = _read_proto(folder)
    # Pieces of the user are found in the normalized text. A dummy prefix would be put before the piece too.
    in_normalized = not proto.normalizer_spec.add_dummy_prefix
    names = [piece.piece for piece in proto.pieces]
    added = {
        token_id: AddedToken(
            piece.piece,
            normalized=in_normalized and piece.type == _USER_DEFINED,
            special=piece.type != _USER_DEFINED,
        )
        for token_id, piece in enumerate(proto.pieces)
        if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }
    for token_id, token in _later_tokens(folder, config).items():
        if not 0 <= token_id < len(names) + 100_000:
            raise CheckpointError(f"{token.content!r} in {folder} has an id out of range", got=token_id, allowed="the next ids")
        names += [f"<unused_{index}>" for index in range(len(names), token_id + 1)]
        names[token_id] = token.content
        added[token_id] = token
    if not all(names) or len(set(names)) < len(names):
        raise CheckpointError(f"{folder / FILE} has empty pieces, or the same twice", remedy="Copy it again")
    tokenizer = Tokenizer(_model(proto, names, folder))
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    tokenizer.decoder = sentencepiece_bpe.decoder(strip_prefix=proto.normalizer_spec.add_dummy_prefix)
    tokenizer.add_tokens([token for _, token in sorted(added.items())])
    _compare(tokenizer, proto, folder)
    special_tokens = {
        **{
            name: names[token_id]
            for name, token_id in (
                ("unk_token", proto.trainer_spec.unk_id),
                ("bos_token", proto.trainer_spec.bos_id),
                ("eos_token", proto.trainer_spec.eos_id),
            )
            if 0 <= token_id < len(names) and name not in config.values
        },
        **config.special_tokens,
    }
    first = special_tokens.get("bos_token") if config.values.get("add_bos_token", True) else None
    last = special_tokens.get("eos_token") if config.values.get("add_eos_token", False) else None
    tokenizer.post_processor = sentencepiece_bpe.first_and_last(tokenizer, first, last)
    return tokenizer, special_tokens


def _read_proto(folder: Path) -> Any:
    content = (folder / FILE).read_bytes()
    if not content.startswith(b"\n"):  # the first field of the protocol buffer
        raise CheckpointError(
            f"{folder / FILE} is no SentencePiece model", remedy="Save the tokenizer as tokenizer.json beside it, with transformers"
        )
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise CheckpointError(
            f"{folder / FILE} needs a package that is not installed",
            got=error,
            remedy='Run pip install "hasten[sentencepiece]", or save the tokenizer as tokenizer.json beside it',
        ) from None
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(content)
    return proto


def _compare(tokenizer: Tokenizer, proto: Any, folder: Path) -> None:
    """Raise ``CheckpointError`` if SentencePiece itself reads a probe in another way.

    Not every setting of a SentencePiece model has a counterpart in ``tokenizers``.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=proto.SerializeToString())
    own = [piece.piece.replace(SPACE, " ") for piece in proto.pieces if piece.type == _USER_DEFINED][:_MAX_PROBED_PIECES]
    known = {piece.piece for piece in proto.pieces}
    later = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.content not in known]
    for probe in (*_PROBES, *(f"see {piece} and{piece}, {piece}{piece}" for piece in own)):
        expected = processor.encode(probe)
        if any(token in probe for token in later) or tokenizer.encode(probe, add_special_tokens=False).ids == expected:
            continue
        raise CheckpointError(
            f"{folder / FILE} has settings that hasten does not support: SentencePiece reads {probe!r} in another way",
            remedy="Save the tokenizer as tokenizer.json beside it, with transformers",
        )


def _later_tokens(folder: Path, config: TokenizerConfig) -> dict[int, AddedToken]:
    """Return the tokens that were added after SentencePiece's training, by id.

    They are found before a text is normalized.
    """
    listed = config.values.get("added_tokens_decoder")
    if listed:
        flags = ("single_word", "lstrip", "rstrip", "special")
        return {
            int(token_id): AddedToken(token["content"], normalized=False, **{name: token[name] for name in flags if name in token})
            for token_id, token in sorted(listed.items(), key=lambda item: int(item[0]))
        }
    file = folder / "added_tokens.json"
    if not has_file(file):
        return {}
    special = set(config.special_tokens.values())
    return {
        int(token_id): AddedToken(name, normalized=False, special=name in special)
        for name, token_id in sorted(read_json(file).items(), key=lambda item: int(item[1]))
    }


def _model(proto: Any, names: list[str], folder: Path) -> Model:
    scores = [piece.score for piece in proto.pieces] + [0.0] * (len(names) - len(proto.pieces))
    spec = proto.trainer_spec
    if spec.model_type == _UNIGRAM:
        return Unigram(list(zip(names, scores, strict=True)), spec.unk_id, spec.byte_fallback)
    if spec.model_type != _BPE:
        raise CheckpointError(
            f"{folder / FILE} is a SentencePiece model of another kind", got=f"model_type={spec.model_type}", allowed="unigram, BPE"
        )
    pieces = {
        name: piece.score
        for name, piece in zip(names, proto.pieces, strict=False)
        if piece.type in (_NORMAL, _UNUSED) and name == piece.piece
    }
    merges = sentencepiece_bpe.merges(pieces)
    vocabulary = {name: token_id for token_id, name in enumerate(names)}
    return BPE(vocabulary, merges, unk_token=names[spec.unk_id], fuse_unk=True, byte_fallback=spec.byte_fallback)


def _normalizer(spec: Any) -> normalizers.Normalizer:
    parts: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        parts.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        parts += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        parts.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*parts, normalizers.Replace(" ", SPACE)])
