"""The same models by torch alone: float32 weights out of gguf.quants.dequantize(), no cache, no kernels of ours."""

from __future__ import annotations

import dataclasses

import gguf
import numpy as np
import torch
import torch.nn.functional as F


@dataclasses.dataclass
class Noise:
    """What the 8-bit activations of ggml_mul_mat_a8 do to the matrix products, measured along the reference.

    A product takes each activation rounded to a multiple of amax / 127, amax being the largest of its group of 32. Were
    the roundings independent and uniform, their variance would be (amax / 127)² / 12, and the product's error relative
    to its result, in the mean over random weights, the square root of
        share = mean(amax² / (127² · 12)) / mean(x²)
    """

    shares: list[float] = dataclasses.field(default_factory=list)

    def add(self, x: torch.Tensor) -> None:
        """Counts the rounding of x, which the products of x share."""
        amax = x.unflatten(-1, (-1, 32)).abs().amax(-1)
        self.shares.append(((amax / 127).square().mean() / 12 / x.square().mean()).item())

    def add_mean(self, others: list[Noise]) -> None:
        """Counts what happens to different tokens, or in different experts, once."""
        self.shares.append(sum(sum(other.shares) for other in others) / len(others))

    def logit_bound(self, logits: torch.Tensor) -> float:
        """The most that a logit may be off: six standard deviations of the noise of all products together.

        The relative noise of a product reaches the residual stream at most undiminished (the branch is a part of the
        stream, norms keep proportions), and independent noises add in squares. Six, because the largest of some 10⁵
        normal deviates (logits × positions) exceeds 6 once in 10⁴ draws.
        """
        deviation = logits.float().std(dim=-1).max().item()
        return 6 * deviation * sum(self.shares) ** 0.5


class Reference:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self._tensors = {t.name: t for t in reader.tensors}
        self._dense: dict[str, torch.Tensor] = {}
        fields = reader.fields
        self.architecture = fields["general.architecture"].contents()

        def value(key, default=None):
            field = fields.get(f"{self.architecture}.{key}")
            return default if field is None else field.contents()

        self.num_layers, hidden = value("block_count"), value("embedding_length")
        self.num_heads = value("attention.head_count")
        self.num_heads_kv = value("attention.head_count_kv")
        self.head_dim = value("attention.key_length", hidden // self.num_heads)
        self.eps = value("attention.layer_norm_rms_epsilon")
        self.rope_base = value("rope.freq_base")
        self.num_experts_used = value("expert_used_count", 0)

    def weight(self, name: str) -> torch.Tensor:
        if name not in self._dense:
            tensor = self._tensors[name]
            dense = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            self._dense[name] = torch.from_numpy(dense.reshape([int(n) for n in reversed(tensor.shape)]))
        return self._dense[name]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight(name), self.eps)

    def _rope(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, heads, head_dim], position t for row t."""
        half = self.head_dim // 2
        angles = torch.arange(x.shape[0])[:, None] * self.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
        cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
        if self.architecture == "llama":
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def logits(self, tokens: list[int]) -> tuple[torch.Tensor, Noise]:
        """[T, vocab] float32: row t is behind tokens[: t + 1]. And the noise that 8-bit products would have."""
        noise = Noise()

        def linear(x: torch.Tensor, name: str) -> torch.Tensor:
            noise.add(x)
            return F.linear(x, self.weight(name))

        def gated(noise: Noise, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor):
            noise.add(x)
            inner = F.silu(F.linear(x, gate)) * F.linear(x, up)
            noise.add(inner)
            return F.linear(inner, down)

        x = self.weight("token_embd.weight")[tokens]
        mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
        for layer in range(self.num_layers):
            prefix = f"blk.{layer}."
            h = self._norm(x, prefix + "attn_norm.weight")
            noise.add(h)
            q, k, v = (
                F.linear(h, self.weight(f"{prefix}attn_{name}.weight")).unflatten(-1, (-1, self.head_dim))
                for name in ("q", "k", "v")
            )
            if self.architecture.startswith("qwen3"):
                q, k = self._norm(q, prefix + "attn_q_norm.weight"), self._norm(k, prefix + "attn_k_norm.weight")
            q, k = self._rope(q), self._rope(k)
            group = self.num_heads // self.num_heads_kv
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            scores = torch.einsum("thd,shd->hts", q, k) / self.head_dim**0.5
            shares = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
            x = x + linear(torch.einsum("hts,shd->thd", shares, v).flatten(1), prefix + "attn_output.weight")
            h = self._norm(x, prefix + "ffn_norm.weight")
            names = [f"{prefix}ffn_{name}" for name in ("gate", "up", "down")]
            if not self.num_experts_used:
                x = x + gated(noise, h, *(self.weight(name + ".weight") for name in names))
                continue
            router = torch.softmax(F.linear(h, self.weight(prefix + "ffn_gate_inp.weight")), dim=-1)
            shares, chosen = torch.topk(router, self.num_experts_used, dim=-1)
            shares = shares / shares.sum(-1, keepdim=True)
            rows, noises = [], []
            for t in range(len(tokens)):
                outputs = []
                for expert in chosen[t].tolist():
                    noises.append(Noise())
                    matrices = (self.weight(name + "_exps.weight")[expert] for name in names)
                    outputs.append(gated(noises[-1], h[t : t + 1], *matrices))
                rows.append(sum(share * output for share, output in zip(shares[t], outputs, strict=True)))
            x = x + torch.cat(rows)
            noise.add_mean(noises)
        head = "output.weight" if "output.weight" in self._tensors else "token_embd.weight"
        return linear(self._norm(x, "output_norm.weight"), head), noise
