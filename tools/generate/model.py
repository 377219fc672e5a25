"""Llama, Qwen3 and Qwen3-MoE over sgl_kernel's operators, with a paged KV cache.

Activations are float32 on the CPU and bfloat16 on a GPU. Weights stay in the file's block formats: the matrix products
decode them as they go. Matrices that a file holds in a float type (a MoE router, say) go through torch instead.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

import sgl_kernel
from sgl_kernel.flash_attn import flash_attn_with_kvcache
from tools.generate.gguf_file import GgufError, GgufFile, Weight

PAGE_SIZE = 64  # tokens of a KV page: a tile of the attention kernels
MAX_HEAD_DIM = 256  # of the attention kernels
FEW_TOKENS = 8  # up to here the matrix-vector kernel is the faster one
WIDEST_INPUT = 16384  # of the kernels that make their input


@dataclasses.dataclass(frozen=True)
class Config:
    architecture: str
    num_layers: int
    hidden: int
    num_heads: int
    num_heads_kv: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    eps: float
    rope_base: float
    rope_scale: float  # positions are divided by it
    num_experts: int
    num_experts_used: int
    expert_intermediate: int

    @property
    def has_qk_norm(self) -> bool:
        return self.architecture.startswith("qwen3")

    @property
    def rope_is_interleaved(self) -> bool:
        """GGUF files of Llama have the rows of Q and K permuted for rotation in neighbouring pairs."""
        return self.architecture == "llama"

    @staticmethod
    def read(file: GgufFile) -> Config:
        architecture = file.get("general.architecture", str)
        if architecture not in ("llama", "qwen3", "qwen3moe"):
            raise GgufError(f"{file.path}: architecture {architecture!r}, expected llama, qwen3 or qwen3moe")

        def count(key: str, default: int | None = None, least: int = 1) -> int:
            value = file.get(f"{architecture}.{key}", int, default)
            if value < least:
                raise GgufError(f"{file.path}: {architecture}.{key} is {value}, expected at least {least}")
            return value

        def positive(key: str, default: float | None = None) -> float:
            value = file.get(f"{architecture}.{key}", float, default)
            if value <= 0:
                raise GgufError(f"{file.path}: {architecture}.{key} is {value}, expected more than 0")
            return value

        scaling = file.get(f"{architecture}.rope.scaling.type", str, "none")
        if scaling not in ("none", "linear"):
            raise GgufError(f"{file.path}: rope.scaling.type is {scaling!r}, expected none or linear")
        hidden, num_heads = count("embedding_length"), count("attention.head_count")
        head_dim = count("attention.key_length", hidden // num_heads)
        if head_dim % 8 != 0 or head_dim > MAX_HEAD_DIM:
            raise GgufError(f"{file.path}: heads of {head_dim}, expected a multiple of 8 up to {MAX_HEAD_DIM}")
        for key in ("attention.value_length", "rope.dimension_count"):
            if count(key, head_dim) != head_dim:
                raise GgufError(f"{file.path}: {architecture}.{key} is {count(key)}, expected the heads' {head_dim}")
        num_heads_kv = count("attention.head_count_kv", num_heads)
        if num_heads % num_heads_kv != 0:
            raise GgufError(f"{file.path}: {num_heads} heads, expected a multiple of {num_heads_kv} KV heads")
        is_moe = architecture == "qwen3moe"
        num_experts = count("expert_count", None if is_moe else 0, least=int(is_moe))
        if num_experts and not is_moe:
            raise GgufError(f"{file.path}: {architecture} with {num_experts} experts is not supported")
        num_experts_used = count("expert_used_count") if is_moe else 0
        if num_experts_used > num_experts:
            raise GgufError(f"{file.path}: {num_experts_used} experts are used, expected at most {num_experts}")
        return Config(
            architecture=architecture,
            num_layers=count("block_count"),
            hidden=hidden,
            num_heads=num_heads,
            num_heads_kv=num_heads_kv,
            head_dim=head_dim,
            intermediate=0 if is_moe else count("feed_forward_length"),
            vocab=len(file.get("tokenizer.ggml.tokens", list[str])),
            context=count("context_length"),
            eps=positive("attention.layer_norm_rms_epsilon"),
            rope_base=positive("rope.freq_base", 10000.0),
            rope_scale=positive("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0,
            num_experts=num_experts,
            num_experts_used=num_experts_used,
            expert_intermediate=count("expert_feed_forward_length") if is_moe else 0,
        )


@dataclasses.dataclass(frozen=True)
class Norm:
    weight: torch.Tensor
    eps: float


class Linear:
    """One matrix, or several that share their input stacked into one where their formats allow."""

    def __init__(self, weights: list[Weight], device: torch.device, dtype: torch.dtype):
        weights = [weight.to(device) for weight in weights]
        if len({weight.kind for weight in weights}) == 1:
            weights = [Weight(torch.cat([weight.data for weight in weights]), weights[0].kind)]
        self._weights = [w if w.is_block_format else Weight(w.data.to(dtype), w.kind) for w in weights]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        results = [multiply(x, weight) for weight in self._weights]
        return results[0] if len(results) == 1 else torch.cat(results, dim=-1)

    def after_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the normalized sum of x and residual; and that sum. May write to both."""
        if self._takes_few(x):
            weight = self._weights[0]
            return sgl_kernel.add_rmsnorm_ggml_mul_mat_vec_a8(
                weight.data, x, residual, norm.weight, norm.eps, int(weight.kind), weight.data.shape[0]
            )
        sgl_kernel.fused_add_rmsnorm(x, residual, norm.weight, norm.eps)
        return self(x), residual

    def after_silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Of silu(gate) · up."""
        if self._takes_few(gate_up):
            weight = self._weights[0]
            return sgl_kernel.silu_and_mul_ggml_mul_mat_vec_a8(
                weight.data, gate_up, int(weight.kind), weight.data.shape[0]
            )
        return self(sgl_kernel.silu_and_mul(gate_up))

    def _takes_few(self, x: torch.Tensor) -> bool:
        """Whether one kernel does it all. It saves a GPU launches, which is what few tokens cost; a CPU has none."""
        fits = x.shape[0] <= FEW_TOKENS and x.shape[-1] <= WIDEST_INPUT
        return x.is_cuda and fits and len(self._weights) == 1 and self._weights[0].is_block_format


def multiply(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """x [T, columns] times the transposed weight [rows, columns]."""
    if not weight.is_block_format:
        return F.linear(x, weight.data)
    product = sgl_kernel.ggml_mul_mat_vec_a8 if x.shape[0] <= FEW_TOKENS else sgl_kernel.ggml_mul_mat_a8
    return product(weight.data, x, int(weight.kind), weight.data.shape[0])


class FeedForward:
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, gate: Weight, up: Weight, down: Weight, device: torch.device, dtype: torch.dtype):
        self._gate_up = Linear([gate, up], device, dtype)
        self._down = Linear([down], device, dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down.after_silu(self._gate_up(x))

    def after_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        gate_up, residual = self._gate_up.after_norm(x, residual, norm)
        return self._down.after_silu(gate_up), residual


class MixtureOfExperts:
    """The weighted sum of the feed-forward networks that the router picks for each token.

    The experts that have tokens run one after another, each on its own tokens: the host looks at the router's choice,
    so a decode step of such a model is not captured into a graph.
    """

    def __init__(self, file: GgufFile, config: Config, layer: int, device: torch.device, dtype: torch.dtype):
        prefix = f"blk.{layer}.ffn_"
        inner, hidden, count = config.expert_intermediate, config.hidden, config.num_experts
        self._router = file.weight(f"{prefix}gate_inp.weight", count, hidden).dequantize().to(device)
        gate = file.weight(f"{prefix}gate_exps.weight", count, inner, hidden)
        up = file.weight(f"{prefix}up_exps.weight", count, inner, hidden)
        down = file.weight(f"{prefix}down_exps.weight", count, hidden, inner)
        self._experts = [
            FeedForward(*(Weight(w.data[i], w.kind) for w in (gate, up, down)), device, dtype) for i in range(count)
        ]
        self._num_used = config.num_experts_used

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.softmax(F.linear(x.float(), self._router), dim=-1)
        shares, chosen = torch.topk(scores, self._num_used, dim=-1)  # [T, num_used]
        shares = shares / shares.sum(dim=-1, keepdim=True)
        outputs = x.new_empty(*chosen.shape, x.shape[1])
        for expert in chosen.unique().tolist():
            token, rank = torch.nonzero(chosen == expert, as_tuple=True)
            outputs[token, rank] = self._experts[expert](x[token])
        return (outputs.float() * shares.unsqueeze(-1)).sum(dim=1).to(x.dtype)

    def after_norm(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        sgl_kernel.fused_add_rmsnorm(x, residual, norm.weight, norm.eps)
        return self(x), residual


class Layer:
    def __init__(self, file: GgufFile, config: Config, index: int, device: torch.device, dtype: torch.dtype):
        def weight(name: str, *shape: int) -> Weight:
            return file.weight(f"blk.{index}.{name}.weight", *shape)

        def norm(name: str, size: int) -> torch.Tensor:
            return weight(name, size).dequantize(dtype).to(device)

        q_size, kv_size = config.num_heads * config.head_dim, config.num_heads_kv * config.head_dim
        self.attention_norm = Norm(norm("attn_norm", config.hidden), config.eps)
        self.qkv = Linear(
            [
                weight("attn_q", q_size, config.hidden),
                weight("attn_k", kv_size, config.hidden),
                weight("attn_v", kv_size, config.hidden),
            ],
            device,
            dtype,
        )
        self.q_norm = norm("attn_q_norm", config.head_dim) if config.has_qk_norm else None
        self.k_norm = norm("attn_k_norm", config.head_dim) if config.has_qk_norm else None
        self.output = Linear([weight("attn_output", config.hidden, q_size)], device, dtype)
        self.feed_forward_norm = Norm(norm("ffn_norm", config.hidden), config.eps)
        if config.num_experts:
            self.feed_forward = MixtureOfExperts(file, config, index, device, dtype)
        else:
            gate = weight("ffn_gate", config.intermediate, config.hidden)
            up = weight("ffn_up", config.intermediate, config.hidden)
            down = weight("ffn_down", config.hidden, config.intermediate)
            self.feed_forward = FeedForward(gate, up, down, device, dtype)


@dataclasses.dataclass
class Batch:
    """The new tokens of some sequences, packed, and where their keys and values go."""

    tokens: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int32
    slots: torch.Tensor  # [T] int32: page · PAGE_SIZE + offset
    cu_seqlens: torch.Tensor  # [B + 1] int32
    seqlens: torch.Tensor  # [B] int32, the new tokens included
    max_new: int  # the most new tokens that a sequence has
    counters: torch.Tensor | None = None  # [3, B] of a decode step: positions, slots and seqlens, which are its rows


class KVCache:
    """Pages for a fixed number of sequences of bounded length; sequence b owns pages b · n to (b + 1) · n."""

    def __init__(self, config: Config, num_sequences: int, length: int, device: torch.device, dtype: torch.dtype):
        pages = -(-length // PAGE_SIZE)
        shape = (num_sequences * pages, PAGE_SIZE, config.num_heads_kv, config.head_dim)
        self.capacity = pages * PAGE_SIZE  # tokens of one sequence
        self.page_table = torch.arange(shape[0], dtype=torch.int32, device=device).view(num_sequences, pages)
        # Zeros, not empty: no kernel reads a slot that was never written, and a wrong one should be seen.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    def prefill(self, prompts: list[list[int]]) -> Batch:
        """The prompts from their beginning."""
        device = self.page_table.device
        lengths = [len(prompt) for prompt in prompts]
        positions = torch.cat([torch.arange(length) for length in lengths])
        first = torch.repeat_interleave(torch.arange(len(prompts)) * self.capacity, torch.tensor(lengths))
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        return Batch(
            tokens=torch.tensor([token for prompt in prompts for token in prompt], device=device),
            positions=positions.to(device, torch.int32),
            slots=(first + positions).to(device, torch.int32),
            cu_seqlens=bounds.to(device, torch.int32),
            seqlens=torch.tensor(lengths, dtype=torch.int32, device=device),
            max_new=max(lengths),
        )

    def decode(self, tokens: torch.Tensor, lengths: list[int]) -> Batch:
        """One more token of each sequence, of which `lengths` tokens are in the cache."""
        device = self.page_table.device
        positions = torch.tensor(lengths)
        slots = torch.arange(len(lengths)) * self.capacity + positions
        counters = torch.stack([positions, slots, positions + 1]).to(device, torch.int32)
        return Batch(
            tokens=tokens,
            positions=counters[0],
            slots=counters[1],
            cu_seqlens=torch.arange(len(lengths) + 1, dtype=torch.int32, device=device),
            seqlens=counters[2],
            max_new=1,
            counters=counters,
        )


def advance(batch: Batch, tokens: torch.Tensor) -> None:
    """Turns a decode step's batch into the next one's, in place: what a captured graph replays."""
    batch.tokens.copy_(tokens)
    batch.counters.add_(1)


class Model:
    def __init__(self, file: GgufFile, device: torch.device):
        self.config = config = Config.read(file)
        self.device = device
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.layers = [Layer(file, config, i, device, self.dtype) for i in range(config.num_layers)]
        final_norm = file.weight("output_norm.weight", config.hidden).dequantize(self.dtype).to(device)
        self.final_norm = Norm(final_norm, config.eps)
        self.embedding = file.weight("token_embd.weight", config.vocab, config.hidden).to(device)
        if "output.weight" in file:
            head = file.weight("output.weight", config.vocab, config.hidden).to(device)
        else:
            head = self.embedding  # tied
        self.head = Linear([head], device, self.dtype)
        self.frequencies = self._rope_frequencies(file)
        # The tables of old files, which say nothing that the metadata do not, are of no use. Anything else is.
        if others := [name for name in file.unread if not name.endswith(".attn_rot_embd.weight")]:
            raise GgufError(f"{file.path}: tensor {others[0]!r} has no place in a model of {self.config.architecture}")
        self.cos_sin = torch.empty(0)

    def _rope_frequencies(self, file: GgufFile) -> torch.Tensor:
        """[head_dim / 2] radians a position."""
        half = self.config.head_dim // 2
        exponents = torch.arange(half, dtype=torch.float64) / half
        frequencies = self.config.rope_base**-exponents / self.config.rope_scale
        if "rope_freqs.weight" in file:  # Llama 3.1: long waves are stretched
            frequencies = frequencies / file.weight("rope_freqs.weight", half).dequantize().double()
        return frequencies

    def new_cache(self, num_sequences: int, length: int) -> KVCache:
        """A cache, and the rotary table up to its length."""
        cache = KVCache(self.config, num_sequences, length, self.device, self.dtype)
        angles = torch.arange(cache.capacity, dtype=torch.float64)[:, None] * self.frequencies
        self.cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).float().to(self.device)
        return cache

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = self.embedding.data.index_select(0, tokens)
        return Weight(rows, self.embedding.kind).dequantize(self.dtype)

    def forward(self, batch: Batch, cache: KVCache) -> torch.Tensor:
        """The logits behind each sequence's last new token: [B, vocab], in the model's dtype."""
        hidden = self.embed(batch.tokens)
        residual = torch.zeros_like(hidden)
        for index, layer in enumerate(self.layers):
            qkv, residual = layer.qkv.after_norm(hidden, residual, layer.attention_norm)
            hidden = layer.output(self._attend(qkv, layer, index, batch, cache))
            hidden, residual = layer.feed_forward.after_norm(hidden, residual, layer.feed_forward_norm)
        if hidden.shape[0] != batch.seqlens.shape[0]:  # only the last tokens' logits are wanted
            last = batch.cu_seqlens[1:].long() - 1
            hidden, residual = hidden[last], residual[last]
        return self.head.after_norm(hidden, residual, self.final_norm)[0]

    def _attend(self, qkv: torch.Tensor, layer: Layer, index: int, batch: Batch, cache: KVCache) -> torch.Tensor:
        config, num_tokens = self.config, qkv.shape[0]
        heads = qkv.view(num_tokens, -1, config.head_dim)
        q, k, v = heads.split_with_sizes([config.num_heads, config.num_heads_kv, config.num_heads_kv], 1)
        if layer.q_norm is not None:
            q = sgl_kernel.rmsnorm(q.reshape(-1, config.head_dim), layer.q_norm, config.eps).view(q.shape)
            k = sgl_kernel.rmsnorm(k.reshape(-1, config.head_dim), layer.k_norm, config.eps).view(k.shape)
        keys, values = cache.keys[index], cache.values[index]
        sgl_kernel.apply_rope_pos_ids_cos_sin_cache(
            q,
            k,
            q,
            k,
            self.cos_sin,
            batch.positions,
            config.rope_is_interleaved,
            True,
            v,
            keys.flatten(0, 1),
            values.flatten(0, 1),
            batch.slots,
        )
        attended = flash_attn_with_kvcache(
            q,
            keys,
            values,
            cache_seqlens=batch.seqlens,
            page_table=cache.page_table,
            cu_seqlens_q=batch.cu_seqlens,
            max_seqlen_q=batch.max_new,
            causal=True,
        )
        return attended.reshape(num_tokens, -1)
