"""Small random GGUF files of each architecture, written with the gguf package."""

from __future__ import annotations

import pathlib

import gguf
import numpy as np

HIDDEN, NUM_HEADS, NUM_HEADS_KV, HEAD_DIM = 64, 4, 2, 32
INTERMEDIATE, EXPERT_INTERMEDIATE, NUM_EXPERTS, NUM_EXPERTS_USED = 96, 32, 4, 2
NUM_LAYERS, CONTEXT = 2, 256

# A byte-level vocabulary with one merge: the 256 bytes, "th", then the control tokens.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = [chr(b) for b in _PRINTABLE] + [chr(256 + i) for i in range(256 - len(_PRINTABLE))]
VOCABULARY = [*_BYTES, "th", "<|end|>", "<|user|>"]
END = len(VOCABULARY) - 2

TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}{{ eos_token }}"

Q = gguf.GGMLQuantizationType


def write(path: pathlib.Path, architecture: str, kind: Q = Q.Q8_0, seed: int = 0) -> pathlib.Path:
    """Writes a model whose matrices have this type (one that the gguf package can quantize to)."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(NUM_LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_HEADS_KV)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(END)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, *shape: int, as_kind: Q | None = None) -> None:
        matrix = (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        wanted = as_kind or kind
        writer.add_tensor(name, gguf.quants.quantize(matrix, wanted), raw_dtype=wanted)

    def add_norm(name: str, size: int) -> None:
        writer.add_tensor(name, (1 + 0.1 * random.standard_normal(size)).astype(np.float32))

    add("token_embd.weight", len(VOCABULARY), HIDDEN)
    add_norm("output_norm.weight", HIDDEN)
    if architecture != "llama":  # llama's is tied, so that both ways are tried
        add("output.weight", len(VOCABULARY), HIDDEN)
    for layer in range(NUM_LAYERS):
        prefix = f"blk.{layer}."
        add_norm(prefix + "attn_norm.weight", HIDDEN)
        add(prefix + "attn_q.weight", NUM_HEADS * HEAD_DIM, HIDDEN)
        add(prefix + "attn_k.weight", NUM_HEADS_KV * HEAD_DIM, HIDDEN)
        # Of another type than Q and K: the three cannot be stacked.
        add(prefix + "attn_v.weight", NUM_HEADS_KV * HEAD_DIM, HIDDEN, as_kind=Q.Q5_0 if layer else None)
        add(prefix + "attn_output.weight", HIDDEN, NUM_HEADS * HEAD_DIM)
        add_norm(prefix + "ffn_norm.weight", HIDDEN)
        if architecture.startswith("qwen3"):
            add_norm(prefix + "attn_q_norm.weight", HEAD_DIM)
            add_norm(prefix + "attn_k_norm.weight", HEAD_DIM)
        if architecture == "qwen3moe":
            add(prefix + "ffn_gate_inp.weight", NUM_EXPERTS, HIDDEN, as_kind=Q.F32)
            add(prefix + "ffn_gate_exps.weight", NUM_EXPERTS, EXPERT_INTERMEDIATE, HIDDEN)
            add(prefix + "ffn_up_exps.weight", NUM_EXPERTS, EXPERT_INTERMEDIATE, HIDDEN)
            add(prefix + "ffn_down_exps.weight", NUM_EXPERTS, HIDDEN, EXPERT_INTERMEDIATE)
        else:
            add(prefix + "ffn_gate.weight", INTERMEDIATE, HIDDEN)
            add(prefix + "ffn_up.weight", INTERMEDIATE, HIDDEN)
            add(prefix + "ffn_down.weight", HIDDEN, INTERMEDIATE)
    if architecture == "qwen3moe":
        writer.add_expert_count(NUM_EXPERTS)
        writer.add_expert_used_count(NUM_EXPERTS_USED)
        writer.add_expert_feed_forward_length(EXPERT_INTERMEDIATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
