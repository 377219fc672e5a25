"""Text to token ids and back, as a GGUF file's metadata describe it."""

from __future__ import annotations

import codecs
import re

import jinja2.sandbox
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from tools.generate.gguf_file import GgufError, GgufFile

# GGUF token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# How a byte-level vocabulary cuts text before it merges, by tokenizer.ggml.pre.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name in ("gpt-2", "gpt2", "default"):
        return byte_level
    if name in ("llama-bpe", "llama3", "llama-v3"):
        return _split(_LLAMA3_WORDS)
    if name == "qwen2":
        return _split(_QWEN2_WORDS)
    raise GgufError(f"tokenizer.ggml.pre is {name!r}, expected smollm, gpt-2, default, llama-bpe or qwen2")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write bytes as printable characters: those that are printable stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # of a SentencePiece vocabulary
_WORD_START = "\u2581"  # what a SentencePiece vocabulary has for a space


def _merges_by_score(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """A SentencePiece vocabulary has scores where byte-level ones have merges: a better token is merged earlier."""
    score_of = dict(zip(tokens, scores, strict=True))
    merges = []
    for token, score in score_of.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in score_of and right in score_of:
                merges.append((-score, len(merges), (left, right)))
    return [pair for _, _, pair in sorted(merges)]


def _byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, ...]], **options) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    except Exception as error:  # the package raises no type of its own
        raise GgufError(f"tokenizer.ggml.merges do not fit the tokens: {error}") from error


class TextCodec:
    """Encodes prompts, renders chats, and decodes tokens one at a time."""

    def __init__(self, file: GgufFile):
        self._tokens = file.get("tokenizer.ggml.tokens", list[str])
        self._types = file.get("tokenizer.ggml.token_type", list[int], [NORMAL] * len(self._tokens))
        if len(self._types) != len(self._tokens):
            raise GgufError(f"tokenizer.ggml.token_type has {len(self._types)} entries, expected {len(self._tokens)}")
        self._model = file.get("tokenizer.ggml.model", str)
        self._template = file.get("tokenizer.chat_template", str, "")
        vocabulary = {token: i for i, token in enumerate(self._tokens)}
        if self._model == "gpt2":
            merges = [tuple(merge.split(" ", 1)) for merge in file.get("tokenizer.ggml.merges", list[str])]
            self._tokenizer = _byte_pairs(vocabulary, merges)
            self._tokenizer.pre_tokenizer = _pre_tokenizer(file.get("tokenizer.ggml.pre", str, "default"))
            self._tokenizer.decoder = decoders.ByteLevel()
        elif self._model == "llama":
            scores = file.get("tokenizer.ggml.scores", list[float])
            if len(scores) != len(self._tokens):
                raise GgufError(f"tokenizer.ggml.scores has {len(scores)} entries, expected {len(self._tokens)}")
            merges = _merges_by_score(self._tokens, scores)
            self._tokenizer = _byte_pairs(vocabulary, merges, byte_fallback=True, fuse_unk=True)
            steps = [normalizers.Replace(" ", _WORD_START)]
            if file.get("tokenizer.ggml.add_space_prefix", bool, True):
                steps.insert(0, normalizers.Prepend(" "))
            self._tokenizer.normalizer = normalizers.Sequence(steps)
        else:
            raise GgufError(f"tokenizer.ggml.model is {self._model!r}, expected gpt2 or llama")
        special = [self._tokens[i] for i, kind in enumerate(self._types) if kind in (CONTROL, USER_DEFINED)]
        self._tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        named = {name: self._named_token(file, name) for name in ("bos", "eos", "eot", "eom")}
        adds_bos = file.get("tokenizer.ggml.add_bos_token", bool, self._model == "llama")
        self._prefix = [named["bos"]] if adds_bos and named["bos"] is not None else []
        self._named = {f"{n}_token": self._tokens[named[n]] for n in ("bos", "eos") if named[n] is not None}
        self.end_tokens = frozenset(named[name] for name in ("eos", "eot", "eom")) - {None}

    def _named_token(self, file: GgufFile, name: str) -> int | None:
        """The token that has a part to play; None if the file names none, or -1."""
        key = f"tokenizer.ggml.{name}_token_id"
        token = file.get(key, int, -1)
        if token >= len(self._tokens):
            raise GgufError(f"{key} is {token}, expected less than the {len(self._tokens)} tokens there are")
        return token if token >= 0 else None

    def encode(self, text: str) -> list[int]:
        if any("\ud800" <= character <= "\udfff" for character in text):  # how Python reads other bytes
            raise GgufError("a prompt is not UTF-8")
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if ids[:1] == self._prefix:
            return ids  # a chat template has written it out already
        return self._prefix + ids

    def chat(self, prompt: str) -> str:
        """The prompt as a user's message in the model's own chat format, ready for the answer."""
        if not self._template:
            raise GgufError("--chat: the file has no tokenizer.chat_template")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            return environment.from_string(self._template).render(
                messages=[{"role": "user", "content": prompt}], add_generation_prompt=True, **self._named
            )
        except Exception as error:  # whatever the file's code raises
            raise GgufError(f"--chat: the file's chat template cannot be rendered: {error}") from error

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to the text: nothing for a control token."""
        text, kind = self._tokens[token], self._types[token]
        if kind == CONTROL:
            return b""
        if self._model == "gpt2":
            if kind == USER_DEFINED or any(character not in _BYTE_OF for character in text):
                return text.encode()
            return bytes(_BYTE_OF[character] for character in text)
        if kind == BYTE and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return text.replace(_WORD_START, " ").encode()

    def stream(self) -> TextStream:
        return TextStream(self)


class TextStream:
    """The text of one sequence, token by token: a character whose bytes span tokens comes with its last one."""

    def __init__(self, codec: TextCodec):
        self._codec = codec
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._codec.token_bytes(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
