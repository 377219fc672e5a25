"""Token sampling from filtered probabilities, and the filters by themselves.

Filters keep a prefix of a row's tokens in the order (probability descending, id ascending): top-k the first k, top-p
the shortest prefix whose share of the row's sum is at least p. min-p keeps the tokens of at least p times the highest
probability. A token that is kept is drawn with probability (its share of the sum of all kept). Rows need not sum to 1.

    top_k   <= 0 or >= vocabulary keeps all; 1 is argmax (the lowest id among equals)
    top_p   >= 1 keeps all, <= 0 the first token alone
    min_p   <= 0 keeps all, >= 1 those equal to the highest

NaN and negative probabilities count as 0; a row with nothing above 2^-96 counts as all zero, and its sample is token 0.

A draw takes two 64-bit numbers from the torch generator, by an operation on its device: under CUDA graphs each replay
draws anew, and after generator.manual_seed(s) the same calls give the same tokens. Given those numbers, the sample of a
row depends on the row and its place among the samples alone. A CPU generator serves CUDA tensors, too (not while a
graph is captured: its numbers must be copied to the device).
"""

from __future__ import annotations

import torch

from sgl_kernel import _sampling as _native
from sgl_kernel._ops import eager_or_traced, implements, two_forms

__all__ = [
    "min_p_sampling_from_probs",
    "top_k_mask_logits",
    "top_k_renorm_prob",
    "top_k_renorm_probs",
    "top_k_renorm_top_p_sampling_from_probs",
    "top_k_top_p_sampling_from_logits",
    "top_k_top_p_sampling_from_probs",
    "top_p_renorm_prob",
    "top_p_renorm_probs",
    "top_p_sampling_from_probs",
]


def _draw_seed(probs: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """(seed, offset) of the kernel's counter-based generator: int64, on the device of probs."""
    if probs.numel() == 0:  # nothing is drawn: a call without rows launches nothing
        return torch.empty(2, dtype=torch.int64, device=probs.device)
    device = probs.device if generator is None else generator.device
    seed = torch.empty(2, dtype=torch.int64, device=device).random_(generator=generator)
    return seed if device == probs.device else seed.to(probs.device)


def _sampler(name: str):
    """The operator of that name: its schema's last argument is the generator, the native function's the seed."""
    native = getattr(_native, name)

    @implements(name)
    def draw(probs, *arguments):
        *arguments, gen = arguments
        native(probs, *arguments, _draw_seed(probs, gen))

    return eager_or_traced(name, draw)


_top_k_top_p_operator = _sampler("top_k_top_p_sampling_from_probs")
_top_k_renorm_top_p_operator = _sampler("top_k_renorm_top_p_sampling_from_probs")
_top_p_operator = _sampler("top_p_sampling_from_probs")
_min_p_operator = _sampler("min_p_sampling_from_probs")
_top_k_renorm_operator = eager_or_traced("top_k_renorm_probs", _native.top_k_renorm_probs)
_top_p_renorm_operator = eager_or_traced("top_p_renorm_probs", _native.top_p_renorm_probs)
_top_k_mask_operator = eager_or_traced("top_k_mask_logits", _native.top_k_mask_logits)


def _integers(threshold: torch.Tensor | int) -> tuple[torch.Tensor | None, int]:
    """A threshold as the operators take it: a tensor or None, and a scalar."""
    if not isinstance(threshold, torch.Tensor):
        return None, threshold
    return (threshold if threshold.dtype in (torch.int32, torch.int64) else threshold.int()), 0


def _floats(threshold: torch.Tensor | float) -> tuple[torch.Tensor | None, float]:
    return (threshold.float(), 0.0) if isinstance(threshold, torch.Tensor) else (None, threshold)


def _draw_samples(operator, probs, indices, thresholds, deterministic, generator, check_nan) -> torch.Tensor:
    """The functional form of a sampler; `thresholds` are pairs of _integers() or _floats()."""
    if check_nan and bool(torch.isnan(probs).any()):
        raise ValueError("probs contains NaN, expected none (check_nan)")
    probs = probs.float()
    rows = probs if indices is None else indices
    samples = torch.empty(rows.shape[:1], dtype=torch.int32, device=probs.device)
    operator(probs, samples, indices, *thresholds, deterministic, generator)
    return samples


def _is_integer_tensor(value) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_floating_point()


def _into_output_second(args: tuple, kwargs: dict) -> bool:
    """(probs, output, …): ids are integers, where the functional form has its threshold."""
    return "output" in kwargs or (len(args) > 1 and _is_integer_tensor(args[1]))


def _into_indices_third(args: tuple, kwargs: dict) -> bool:
    """(probs, output, maybe_indices, …): None or integers, where the functional form has top_p."""
    if len(args) > 2:
        return args[2] is None or _is_integer_tensor(args[2])
    return "output" in kwargs or "maybe_indices" in kwargs or "top_p_val" in kwargs


def _into_output_named(args: tuple, kwargs: dict) -> bool:
    """(input, output, maybe_array, scalar), where the functional form has two arguments."""
    return len(args) + len(kwargs) > 2


def _top_k_top_p_into(
    probs,
    output,
    maybe_indices=None,
    maybe_top_k_arr=None,
    top_k_val=0,
    maybe_top_p_arr=None,
    top_p_val=1.0,
    deterministic=True,
    gen=None,
) -> None:
    _top_k_top_p_operator(
        probs, output, maybe_indices, maybe_top_k_arr, top_k_val, maybe_top_p_arr, top_p_val, deterministic, gen
    )


def _top_p_into(
    probs, output, maybe_indices=None, maybe_top_p_arr=None, top_p_val=1.0, deterministic=True, gen=None
) -> None:
    _top_p_operator(probs, output, maybe_indices, maybe_top_p_arr, top_p_val, deterministic, gen)


def _min_p_into(
    probs, output, maybe_indices=None, maybe_min_p_arr=None, min_p_val=0.0, deterministic=True, gen=None
) -> None:
    _min_p_operator(probs, output, maybe_indices, maybe_min_p_arr, min_p_val, deterministic, gen)


def _top_k_renorm_into(probs, renorm_probs, maybe_top_k_arr=None, top_k_val=0) -> None:
    _top_k_renorm_operator(probs, renorm_probs, maybe_top_k_arr, top_k_val)


def _top_p_renorm_into(probs, renorm_probs, maybe_top_p_arr=None, top_p_val=1.0) -> None:
    _top_p_renorm_operator(probs, renorm_probs, maybe_top_p_arr, top_p_val)


def _top_k_mask_into(logits, mask_logits, maybe_top_k_arr=None, top_k_val=0) -> None:
    _top_k_mask_operator(logits, mask_logits, maybe_top_k_arr, top_k_val)


@two_forms(_into_indices_third, _top_k_top_p_into)
def top_k_top_p_sampling_from_probs(
    probs: torch.Tensor,
    top_k: torch.Tensor | int,
    top_p: torch.Tensor | float,
    indices: torch.Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> torch.Tensor:
    """Draws a token from each row, filtered by top-k and top-p.

    Args:
      probs: [num_rows, vocab], float32 (other floats are converted); rows may be strided.
      top_k: int, or [num_samples] of integers.
      top_p: float, or [num_samples] of floats.
      indices: [num_samples], int32 or int64: sample s draws from probs[indices[s]]. None: sample s draws from row s. An
        index out of range is a ValueError on the CPU; on a GPU its sample is -1.
      filter_apply_order: "top_k_first": p is a share of the first k tokens' sum. "joint": of the whole row's; the
        shorter of the two prefixes is kept.
      deterministic: ignored, every result is.
      generator: of the seed; None is the device's default one.
      check_nan: looks for NaN first (a synchronization).

    Returns:
      [num_samples], int32. Also called as top_k_top_p_sampling_from_probs(probs, output, maybe_indices,
      maybe_top_k_arr, top_k_val, maybe_top_p_arr, top_p_val, deterministic, gen), which filters jointly and returns
      None.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above, or there is NaN and check_nan.
    """
    operators = {"top_k_first": _top_k_renorm_top_p_operator, "joint": _top_k_top_p_operator}
    if filter_apply_order not in operators:
        raise ValueError(f"filter_apply_order is {filter_apply_order!r}, expected 'top_k_first' or 'joint'")
    thresholds = (*_integers(top_k), *_floats(top_p))
    return _draw_samples(operators[filter_apply_order], probs, indices, thresholds, deterministic, generator, check_nan)


def top_k_renorm_top_p_sampling_from_probs(
    probs: torch.Tensor,
    output: torch.Tensor,
    maybe_indices: torch.Tensor | None,
    maybe_top_k_arr: torch.Tensor | None,
    top_k_val: int,
    maybe_top_p_arr: torch.Tensor | None,
    top_p_val: float,
    deterministic: bool = True,
    gen: torch.Generator | None = None,
) -> None:
    """top_k_top_p_sampling_from_probs with filter_apply_order="top_k_first", into `output` [num_samples] int32."""
    _top_k_renorm_top_p_operator(
        probs, output, maybe_indices, maybe_top_k_arr, top_k_val, maybe_top_p_arr, top_p_val, deterministic, gen
    )


@two_forms(_into_output_second, _top_p_into)
def top_p_sampling_from_probs(
    probs: torch.Tensor,
    top_p: torch.Tensor | float,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> torch.Tensor:
    """Draws a token from each row, filtered by top-p.

    Arguments, result and errors are those of top_k_top_p_sampling_from_probs. Also called as
    top_p_sampling_from_probs(probs, output, maybe_indices, maybe_top_p_arr, top_p_val, deterministic, gen).
    """
    return _draw_samples(_top_p_operator, probs, indices, _floats(top_p), deterministic, generator, check_nan)


@two_forms(_into_output_second, _min_p_into)
def min_p_sampling_from_probs(
    probs: torch.Tensor,
    min_p: torch.Tensor | float,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> torch.Tensor:
    """Draws a token from each row, filtered by min-p.

    Arguments, result and errors are those of top_k_top_p_sampling_from_probs, with min_p: a float, or [num_samples] of
    floats. Also called as min_p_sampling_from_probs(probs, output, maybe_indices, maybe_min_p_arr, min_p_val,
    deterministic, gen).
    """
    return _draw_samples(_min_p_operator, probs, indices, _floats(min_p), deterministic, generator, check_nan)


def top_k_top_p_sampling_from_logits(
    logits: torch.Tensor,
    top_k: torch.Tensor | int,
    top_p: torch.Tensor | float,
    indices: torch.Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
) -> torch.Tensor:
    """top_k_top_p_sampling_from_probs of softmax(logits), in float32.

    Args:
      logits: [num_rows, vocab], any float dtype.
      The others, the result and the errors are those of top_k_top_p_sampling_from_probs. A row of logits with NaN has
      no softmax; its sample is token 0.
    """
    probs = torch.softmax(logits, dim=-1, dtype=torch.float32)
    return top_k_top_p_sampling_from_probs(
        probs, top_k, top_p, indices, filter_apply_order, deterministic, generator, check_nan
    )


@two_forms(_into_output_named, _top_k_renorm_into)
def top_k_renorm_probs(probs: torch.Tensor, top_k: torch.Tensor | int) -> torch.Tensor:
    """Keeps the k highest probabilities of each row, and those equal to the k-th, divided by their sum; else 0.

    Args:
      probs: [num_rows, vocab], float32 (other floats are converted); rows may be strided.
      top_k: int, or [num_rows] of integers.

    Returns:
      like probs, float32. Also called as top_k_renorm_probs(probs, renorm_probs, maybe_top_k_arr, top_k_val), which
      returns None; renorm_probs may be probs itself. An all-zero row stays so.

    Raises:
      ValueError: a shape, dtype, stride or device is not as above.
    """
    probs = probs.float()
    renorm_probs = torch.empty_like(probs)
    _top_k_renorm_operator(probs, renorm_probs, *_integers(top_k))
    return renorm_probs


@two_forms(_into_output_named, _top_p_renorm_into)
def top_p_renorm_probs(probs: torch.Tensor, top_p: torch.Tensor | float) -> torch.Tensor:
    """Keeps the highest probabilities of each row that sum to at least top_p of the row's sum, and those equal to the
    lowest of them, divided by their sum; else 0.

    Args:
      probs: [num_rows, vocab], float32 (other floats are converted); rows may be strided.
      top_p: float, or [num_rows] of floats.

    Returns, also called as, raises: as top_k_renorm_probs, with maybe_top_p_arr and top_p_val.
    """
    probs = probs.float()
    renorm_probs = torch.empty_like(probs)
    _top_p_renorm_operator(probs, renorm_probs, *_floats(top_p))
    return renorm_probs


@two_forms(_into_output_named, _top_k_mask_into)
def top_k_mask_logits(logits: torch.Tensor, top_k: torch.Tensor | int) -> torch.Tensor:
    """Keeps the k highest logits of each row, and those equal to the k-th; else -infinity. NaN becomes -infinity.

    Args:
      logits: [num_rows, vocab], float32 (other floats are converted); rows may be strided.
      top_k: int, or [num_rows] of integers.

    Returns, also called as, raises: as top_k_renorm_probs, with mask_logits for the output.
    """
    logits = logits.float()
    mask_logits = torch.empty_like(logits)
    _top_k_mask_operator(logits, mask_logits, *_integers(top_k))
    return mask_logits


top_k_renorm_prob = top_k_renorm_probs
top_p_renorm_prob = top_p_renorm_probs
