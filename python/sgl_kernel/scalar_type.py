"""Scalar types that torch.dtype lacks: of fewer than 8 bits, or with a bias.

scalar_types.uint4b8      # GPTQ's 4-bit integers: 8 stands for zero
scalar_types.uint4b8.id   # what operators take
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from enum import Enum

__all__ = ["NanRepr", "ScalarType", "scalar_types"]


class NanRepr(Enum):
    """How a floating-point type writes NaN."""

    NONE = 0  # not at all
    IEEE_754 = 1  # the largest exponent, a mantissa other than zero
    EXTD_RANGE_MAX_MIN = 2  # the largest exponent and mantissa


_types_by_id: dict[int, ScalarType] = {}


@dataclass(frozen=True)
class ScalarType:
    """A floating-point or integer type of any width. What is stored is the value plus the bias.

    exponent: bits of the exponent, 0 for integers.
    mantissa: bits of the mantissa; of an integer all but its sign.
    signed: whether there is a sign bit.
    bias: what is added to a value when it is stored.
    nan_repr: how NaN is written; no matter for integers.
    """

    exponent: int
    mantissa: int
    signed: bool
    bias: int
    _finite_values_only: bool = False
    nan_repr: NanRepr = NanRepr.IEEE_754

    @functools.cached_property
    def id(self) -> int:
        """The fields in an integer, which operators take: 8 bits each of exponent and mantissa, 1 of sign, 32 of bias,
        1 for finite values only, 8 of NaN's kind, from the lowest on."""
        fields = [
            (self.exponent, 8),
            (self.mantissa, 8),
            (self.signed, 1),
            (self.bias, 32),
            (self._finite_values_only, 1),
            (self.nan_repr.value, 8),
        ]
        packed = shift = 0
        for field, width in fields:
            packed |= (int(field) & ((1 << width) - 1)) << shift
            shift += width
        _types_by_id[packed] = self
        return packed

    @classmethod
    def from_id(cls, scalar_type_id: int) -> ScalarType:
        """The type of an id; ValueError if no such type was made."""
        if scalar_type_id not in _types_by_id:
            raise ValueError(f"scalar_type_id {scalar_type_id} is that of no type")
        return _types_by_id[scalar_type_id]

    @property
    def size_bits(self) -> int:
        return self.exponent + self.mantissa + int(self.signed)

    def min(self) -> int | float:
        """The least value."""
        return self._raw_min() - self.bias

    def max(self) -> int | float:
        """The largest finite value."""
        return self._raw_max() - self.bias

    def is_signed(self) -> bool:
        return self.signed

    def is_floating_point(self) -> bool:
        return self.exponent != 0

    def is_integer(self) -> bool:
        return self.exponent == 0

    def has_bias(self) -> bool:
        return self.bias != 0

    def has_infs(self) -> bool:
        return not self._finite_values_only

    def has_nans(self) -> bool:
        return self.nan_repr != NanRepr.NONE

    def is_ieee_754(self) -> bool:
        return self.nan_repr == NanRepr.IEEE_754 and not self._finite_values_only

    def _floating_point_max(self) -> float:
        """The largest value, where the exponent's bias is the customary 2^(exponent - 1) - 1."""
        if self.mantissa > 52 or self.exponent > 11:
            raise ValueError(f"{self} has values that are no double")
        steps = (1 << self.mantissa) - 1  # of the mantissa's last place
        exponent = (1 << (self.exponent - 1)) - 1
        if self.nan_repr == NanRepr.EXTD_RANGE_MAX_MIN:
            steps -= 1
        if self.nan_repr != NanRepr.IEEE_754:
            exponent += 1  # the largest exponent is not set aside
        return math.ldexp((1 << self.mantissa) + steps, exponent - self.mantissa)

    def _floating_point_max_int(self) -> int:
        """The bits of that as a double."""
        return struct.unpack("!Q", struct.pack("!d", self._floating_point_max()))[0]

    def _raw_max(self) -> int | float:
        """The largest number that is stored."""
        return self._floating_point_max() if self.is_floating_point() else (1 << self.mantissa) - 1

    def _raw_min(self) -> int | float:
        """The least number that is stored."""
        if self.is_floating_point():
            return -self._floating_point_max()
        return -(1 << (self.size_bits - 1)) if self.signed else 0

    def __str__(self) -> str:
        """As ml_dtypes names types: float8_e4m3fn (f: finite values only, n: NaN in its own way), uint4b8 (b: bias)."""
        if self.is_integer():
            return ("int" if self.signed else "uint") + str(self.size_bits) + (f"b{self.bias}" if self.bias else "")
        name = f"float{self.size_bits}_e{self.exponent}m{self.mantissa}"
        if self.is_ieee_754():
            return name
        return name + ("f" if self._finite_values_only else "") + ("n" if self.has_nans() else "")

    def __repr__(self) -> str:
        return f"ScalarType.{self}"

    def __len__(self) -> int:
        raise TypeError("a ScalarType has no length")  # opcheck takes what has one for a sequence

    @classmethod
    def int_(cls, size_bits: int, bias: int | None) -> ScalarType:
        """A signed integer of size_bits, the sign among them."""
        return cls._known(cls(0, size_bits - 1, True, bias or 0))

    @classmethod
    def uint(cls, size_bits: int, bias: int | None) -> ScalarType:
        """An unsigned integer."""
        return cls._known(cls(0, size_bits, False, bias or 0))

    @classmethod
    def float_IEEE754(cls, exponent: int, mantissa: int) -> ScalarType:
        """A floating-point type with infinities and NaNs as in IEEE 754."""
        return cls.float_(exponent, mantissa, False, None)

    @classmethod
    def float_(cls, exponent: int, mantissa: int, finite_values_only: bool, nan_repr: NanRepr | None) -> ScalarType:
        """Another floating-point type. ValueError for one of IEEE 754, which has a constructor of its own."""
        if mantissa <= 0 or exponent <= 0:
            raise ValueError(f"a float has bits of exponent and mantissa, not {exponent} and {mantissa}")
        if nan_repr == NanRepr.IEEE_754:
            raise ValueError("nan_repr is IEEE_754: use float_IEEE754")
        return cls._known(cls(exponent, mantissa, True, 0, finite_values_only, nan_repr or NanRepr.IEEE_754))

    @staticmethod
    def _known(made: ScalarType) -> ScalarType:
        made.id  # noqa: B018 - from_id() finds it from now on
        return made


class scalar_types:
    """The types that operators know, and some more."""

    int4 = ScalarType.int_(4, None)
    uint4 = ScalarType.uint(4, None)
    int8 = ScalarType.int_(8, None)
    uint8 = ScalarType.uint(8, None)
    float8_e4m3fn = ScalarType.float_(4, 3, True, NanRepr.EXTD_RANGE_MAX_MIN)
    float8_e5m2 = ScalarType.float_IEEE754(5, 2)
    float16_e8m7 = ScalarType.float_IEEE754(8, 7)
    float16_e5m10 = ScalarType.float_IEEE754(5, 10)

    float6_e3m2f = ScalarType.float_(3, 2, True, NanRepr.NONE)
    float4_e2m1f = ScalarType.float_(2, 1, True, NanRepr.NONE)

    # Of GPTQ.
    uint2b2 = ScalarType.uint(2, 2)
    uint3b4 = ScalarType.uint(3, 4)
    uint4b8 = ScalarType.uint(4, 8)
    uint8b128 = ScalarType.uint(8, 128)

    bfloat16 = float16_e8m7
    float16 = float16_e5m10
