"""sgl_kernel.scalar_type: the ids that operators take, the names and the ranges of values."""

import pytest

from sgl_kernel.scalar_type import NanRepr, ScalarType, scalar_types

# Type → name, id, least and largest value.
KNOWN = {
    "int4": ("int4", 1 << 50 | 1 << 16 | 3 << 8, -8, 7),
    "uint4": ("uint4", 1 << 50 | 4 << 8, 0, 15),
    "uint4b8": ("uint4b8", 1 << 50 | 8 << 17 | 4 << 8, -8, 7),
    "uint8b128": ("uint8b128", 1 << 50 | 128 << 17 | 8 << 8, -128, 127),
    "float8_e4m3fn": ("float8_e4m3fn", 2 << 50 | 1 << 49 | 1 << 16 | 3 << 8 | 4, -448.0, 448.0),
    "float8_e5m2": ("float8_e5m2", 1 << 50 | 1 << 16 | 2 << 8 | 5, -57344.0, 57344.0),
    "float16": ("float16_e5m10", 1 << 50 | 1 << 16 | 10 << 8 | 5, -65504.0, 65504.0),
    "float6_e3m2f": ("float6_e3m2f", 1 << 49 | 1 << 16 | 2 << 8 | 3, -28.0, 28.0),
    "float4_e2m1f": ("float4_e2m1f", 1 << 49 | 1 << 16 | 1 << 8 | 2, -6.0, 6.0),
}


@pytest.mark.parametrize("name", list(KNOWN))
def test_type(name):
    text, number, least, most = KNOWN[name]
    type = getattr(scalar_types, name)
    assert (str(type), repr(type), type.id) == (text, f"ScalarType.{text}", number)
    assert (type.min(), type.max()) == (least, most)
    assert ScalarType.from_id(number) == type
    assert type.is_floating_point() != type.is_integer()
    assert type.size_bits == int("".join(c for c in text.split("_")[0].split("b")[0] if c.isdigit()))


def test_members():
    """All that upstream's classes have."""
    names = "int4 uint4 int8 uint8 float8_e4m3fn float8_e5m2 float16_e8m7 float16_e5m10 float6_e3m2f float4_e2m1f"
    for name in [*names.split(), "uint2b2", "uint3b4", "uint4b8", "uint8b128", "bfloat16", "float16"]:
        type = getattr(scalar_types, name)
        assert ScalarType.from_id(type.id) == type and hash(type) == hash(ScalarType.from_id(type.id))
    for name in ("exponent", "mantissa", "signed", "bias", "nan_repr"):
        assert hasattr(scalar_types.uint4b8, name), name
    assert ScalarType.int_(4, None) == scalar_types.int4 and ScalarType.uint(8, 128) == scalar_types.uint8b128
    assert ScalarType.float_IEEE754(5, 10) == scalar_types.float16


def test_predicates():
    e4m3, e5m2, u4b8 = scalar_types.float8_e4m3fn, scalar_types.float8_e5m2, scalar_types.uint4b8
    assert not e4m3.has_infs() and e4m3.has_nans() and not e4m3.is_ieee_754() and e4m3.is_signed()
    assert e5m2.has_infs() and e5m2.is_ieee_754() and not e5m2.has_bias()
    assert u4b8.has_bias() and not u4b8.is_signed() and not scalar_types.float4_e2m1f.has_nans()
    assert scalar_types.bfloat16 is scalar_types.float16_e8m7
    with pytest.raises(TypeError):
        len(u4b8)


def test_wrong():
    with pytest.raises(ValueError, match="scalar_type_id 12345"):
        ScalarType.from_id(12345)
    with pytest.raises(ValueError, match="float_IEEE754"):
        ScalarType.float_(5, 2, False, NanRepr.IEEE_754)
    with pytest.raises(ValueError, match="exponent and mantissa"):
        ScalarType.float_(0, 2, True, NanRepr.NONE)
