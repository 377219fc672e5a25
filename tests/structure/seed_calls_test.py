"""The calls that the project's brief shows, as it writes them.

It writes the destination form: outputs among the arguments, as in torch.ops. Each call here runs, and gives what
upstream's functional form gives.
"""

import pytest
import torch

import sgl_kernel

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
BF16 = torch.bfloat16


@pytest.fixture(params=DEVICES)
def device(request):
    torch.manual_seed(0)
    with torch.device(request.param):
        yield request.param


def needs(*names):
    missing = [name for name in names if not hasattr(sgl_kernel, name)]
    if missing:
        pytest.skip(f"not there yet: {', '.join(missing)}")


def test_rmsnorm(device):
    input, weight = torch.randn(3, 64, dtype=BF16), torch.randn(64, dtype=BF16)
    output = torch.empty_like(input)
    sgl_kernel.rmsnorm(output, input, weight, eps=1e-6, enable_pdl=True)
    assert torch.equal(output, sgl_kernel.rmsnorm(input, weight, 1e-6))
    eps, enable_pdl = 1e-6, True
    torch.ops.sgl_kernel.rmsnorm(output.zero_(), input, weight, eps, enable_pdl)
    assert torch.equal(output, sgl_kernel.rmsnorm(input, weight, 1e-6))


def test_fused_add_rmsnorm(device):
    input, residual = torch.randn(3, 64, dtype=BF16), torch.randn(3, 64, dtype=BF16)
    weight = torch.randn(64, dtype=BF16)
    total = input + residual
    sgl_kernel.fused_add_rmsnorm(input, residual, weight, eps=1e-6, enable_pdl=True)
    assert torch.equal(residual, total)
    assert torch.equal(input, sgl_kernel.rmsnorm(total, weight))


@pytest.mark.parametrize("name", ["silu_and_mul", "gelu_tanh_and_mul", "gelu_and_mul"])
def test_gated_activations(device, name):
    needs(name)
    input, out = torch.randn(3, 128, dtype=BF16), torch.empty(3, 64, dtype=BF16)
    function = getattr(sgl_kernel, name)
    function(out, input)
    assert torch.equal(out, function(input))
    getattr(torch.ops.sgl_kernel, name)(out.zero_(), input)
    assert torch.equal(out, function(input))


def test_rope(device):
    needs("apply_rope_pos_ids_cos_sin_cache")
    q, k = torch.randn(3, 4, 64, dtype=BF16), torch.randn(3, 2, 64, dtype=BF16)
    q_rope, k_rope = torch.empty_like(q), torch.empty_like(k)
    angles = torch.rand(16, 32)
    cos_sin_cache = torch.cat([angles.cos(), angles.sin()], -1)
    pos_ids = torch.tensor([0, 5, 15])
    interleave, enable_pdl = False, True
    v, k_buffer, v_buffer = torch.randn_like(k), torch.zeros(8, 2, 64, dtype=BF16), torch.zeros(8, 2, 64, dtype=BF16)
    kv_cache_loc = torch.tensor([7, 0, 3])
    sgl_kernel.apply_rope_pos_ids_cos_sin_cache(
        q, k, q_rope, k_rope, cos_sin_cache, pos_ids, interleave, enable_pdl, v, k_buffer, v_buffer, kv_cache_loc
    )
    assert torch.equal(q_rope[0], q[0]) == bool((angles[0] == 0).all())
    assert torch.equal(k_buffer[kv_cache_loc], k_rope) and torch.equal(v_buffer[kv_cache_loc], v)


def test_merge_state(device):
    needs("merge_state")
    v_a, v_b = torch.randn(3, 4, 64, dtype=BF16), torch.randn(3, 4, 64, dtype=BF16)
    s_a, s_b = torch.randn(3, 4), torch.randn(3, 4)
    v_merged, s_merged = torch.empty_like(v_a), torch.empty_like(s_a)
    sgl_kernel.merge_state(v_a, s_a, v_b, s_b, v_merged, s_merged)
    v, s = sgl_kernel.merge_state(v_a, s_a, v_b, s_b)
    assert torch.equal(v, v_merged) and torch.equal(s, s_merged)


def test_top_k_top_p_sampling_from_probs(device):
    needs("top_k_top_p_sampling_from_probs")
    probs = torch.rand(4, 1000).softmax(-1)
    output = torch.empty(4, dtype=torch.int32)
    sgl_kernel.top_k_top_p_sampling_from_probs(
        probs, output, None,
        None, 50,    # top_k
        None, 0.9,   # top_p
        deterministic=True, gen=None
    )  # fmt: skip
    kept = probs.topk(50).indices
    assert (kept == output[:, None]).any(-1).all()


def test_min_p_sampling_from_probs(device):
    needs("min_p_sampling_from_probs")
    probs = torch.rand(4, 1000).softmax(-1)
    output = torch.empty(4, dtype=torch.int32)
    maybe_indices = maybe_min_p_arr = gen = None
    min_p_val, deterministic = 0.5, True
    sgl_kernel.min_p_sampling_from_probs(
        probs, output, maybe_indices, maybe_min_p_arr, min_p_val, deterministic, gen
    )  # fmt: skip
    chosen = probs.gather(1, output[:, None].long())
    assert (chosen >= 0.5 * probs.amax(-1, keepdim=True)).all()


def test_renormalized_probs(device):
    needs("top_k_renorm_probs", "top_p_renorm_probs")
    probs = torch.rand(4, 1000).softmax(-1)
    renorm_probs = torch.empty_like(probs)
    maybe_top_k_arr, top_k_val = None, 50
    sgl_kernel.top_k_renorm_probs(probs, renorm_probs, maybe_top_k_arr, top_k_val)
    assert torch.equal(renorm_probs, sgl_kernel.top_k_renorm_probs(probs, 50))
    maybe_top_p_arr, top_p_val = None, 0.9
    sgl_kernel.top_p_renorm_probs(probs, renorm_probs, maybe_top_p_arr, top_p_val)
    assert torch.equal(renorm_probs, sgl_kernel.top_p_renorm_probs(probs, 0.9))


@pytest.mark.cuda
def test_cuda_graph():
    out = torch.empty(3, 64, dtype=BF16, device="cuda")
    input = torch.randn(3, 128, dtype=BF16, device="cuda")
    torch.ops.sgl_kernel.silu_and_mul(out, input)
    expected = out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sgl_kernel.silu_and_mul(out, input)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
