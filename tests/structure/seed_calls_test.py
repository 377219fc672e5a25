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


def e4m3(*shape):
    return torch.randn(shape).mul(40).to(torch.float8_e4m3fn)


def test_fp8_scaled_mm(device):
    needs("fp8_scaled_mm")
    a_fp8, b_fp8 = e4m3(3, 128), e4m3(16, 128).t()
    a_scale, b_scale = torch.rand(3, 1), torch.rand(16, 1)
    result = sgl_kernel.fp8_scaled_mm(
        a_fp8, b_fp8,
        a_scale, b_scale,
        out_dtype=torch.bfloat16,
        bias=None
    )  # fmt: skip
    expected = (a_fp8.double() @ b_fp8.double()) * a_scale * b_scale.t()
    assert (result - expected).abs().max() <= 2.0**-7 * expected.abs().max()
    bias = torch.randn(16, dtype=BF16)
    with_bias = sgl_kernel.fp8_scaled_mm(a_fp8, b_fp8, a_scale, b_scale, torch.bfloat16, bias)
    assert (with_bias - (expected + bias)).abs().max() <= 2.0**-7 * (expected + bias).abs().max()


def test_gptq_marlin_gemm(device):
    needs("gptq_marlin_gemm")
    from sgl_kernel.scalar_type import scalar_types

    size_m, size_n, size_k = 3, 64, 128
    a = torch.randn(size_m, size_k, dtype=torch.float16)
    b_q_weight = torch.full((size_k // 16, size_n * 2), 0x11111111 * 7, dtype=torch.int32)  # 7 - 8 in any layout
    b_scales, workspace = torch.ones(1, size_n, dtype=torch.float16), torch.zeros(264, dtype=torch.int32)
    c_or_none = global_scale_or_none = b_zeros_or_none = g_idx_or_none = perm_or_none = None
    is_k_full, use_atomic_add, use_fp32_reduce, is_zp_float = True, False, True, False
    results = []
    for b_q_type_id in (scalar_types.uint4b8, scalar_types.uint4b8.id):
        output = sgl_kernel.gptq_marlin_gemm(
            a, c_or_none,
            b_q_weight, b_scales, global_scale_or_none,
            b_zeros_or_none, g_idx_or_none, perm_or_none,
            workspace, b_q_type_id, size_m, size_n, size_k,
            is_k_full, use_atomic_add, use_fp32_reduce, is_zp_float
        )  # fmt: skip
        results.append(output)
    expected = -a.double().sum(1, keepdim=True).expand(size_m, size_n)
    assert (results[0] - expected).abs().max() <= 2.0**-10 * expected.abs().max()
    assert torch.equal(*results)


@pytest.mark.parametrize("is_static", [False, True])
def test_sgl_per_tensor_quant_fp8(device, is_static):
    needs("sgl_per_tensor_quant_fp8")
    input = torch.randn(3, 64, dtype=BF16)
    output_q, output_s = torch.empty(3, 64, dtype=torch.float8_e4m3fn), torch.full((1,), 0.01)
    sgl_kernel.sgl_per_tensor_quant_fp8(input, output_q, output_s, is_static)
    expected = torch.full((1,), 0.01) if is_static else input.abs().amax().float()[None] / 448
    torch.testing.assert_close(output_s, expected)
    assert (output_q.float() * output_s - input).abs().max() <= input.abs().max() / 16


def test_sgl_per_token_quant_fp8(device):
    needs("sgl_per_token_quant_fp8")
    input = torch.randn(3, 64, dtype=BF16)
    output_q, output_s = torch.empty(3, 64, dtype=torch.float8_e4m3fn), torch.empty(3, 1)
    sgl_kernel.sgl_per_token_quant_fp8(input, output_q, output_s)
    torch.testing.assert_close(output_s, input.abs().amax(1, keepdim=True).float() / 448)
    assert ((output_q.float() * output_s - input).abs() <= input.abs().amax(1, keepdim=True) / 16).all()


def test_sgl_per_token_group_quant_8bit(device):
    needs("sgl_per_token_group_quant_8bit")
    input = torch.randn(3, 256, dtype=BF16)
    output_q, output_s = torch.empty(3, 256, dtype=torch.float8_e4m3fn), torch.empty(3, 2)
    group_size, eps, fp8_min, fp8_max, scale_ue8m0 = 128, 1e-10, -448.0, 448.0, False
    sgl_kernel.sgl_per_token_group_quant_8bit(
        input, output_q, output_s,
        group_size, eps, fp8_min, fp8_max, scale_ue8m0
    )  # fmt: skip
    torch.testing.assert_close(output_s, input.view(3, 2, 128).abs().amax(-1).float() / 448)
    error = (output_q.float() * output_s.repeat_interleave(128, 1) - input).abs()
    assert (error <= input.abs().max() / 16).all()


def test_scaled_fp4_quant(device):
    needs("scaled_fp4_quant")
    input, input_scale = torch.randn(3, 64, dtype=BF16), torch.full((1,), 600.0)
    output, output_scale = torch.empty(3, 32, dtype=torch.uint8), torch.empty(128, 1, dtype=torch.int32)
    sgl_kernel.scaled_fp4_quant(output, input, output_scale, input_scale)
    values, scales = sgl_kernel.scaled_fp4_quant(input, input_scale)
    assert torch.equal(output, values)
    assert torch.equal(output_scale.view(torch.uint8), scales.view(torch.uint8))


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
