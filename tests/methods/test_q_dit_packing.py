"""Laws of packed storage: nothing is lost, the layout is the stated one, and the bytes are those of the formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mezzotint.methods.q_dit.packing import PACKED_BITS, StoredWeight, pack, packed_bytes, stored_bytes, unpack
from mezzotint.methods.q_dit.quantiser import Codes, Precision, quantise

SYMMETRIES = [False, True]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_codes(bits, *shape, seed=0):
    return torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@given(st.sampled_from(PACKED_BITS), st.lists(st.integers(0, 3), max_size=2), st.integers(0, 33), st.integers(0, 9))
def test_unpacking_gives_back_what_was_packed(bits, leading, width, seed):
    codes = random_codes(bits, *leading, width, seed=seed)
    packed = pack(codes, bits)
    assert packed.shape == (*leading, packed_bytes(width, bits))
    assert torch.equal(unpack(packed, bits, width), codes)


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_a_row_is_one_little_endian_number(bits):
    codes = random_codes(bits, 13)
    number = sum(code << (bits * k) for k, code in enumerate(codes.tolist()))
    assert int.from_bytes(bytes(pack(codes, bits).tolist()), "little") == number


def test_four_bits_put_the_first_code_into_the_low_half():
    assert pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]


@pytest.mark.parametrize("symmetric", SYMMETRIES)
@pytest.mark.parametrize("bits", PACKED_BITS)
@pytest.mark.parametrize(("rows", "width", "group"), [(6, 32, 8), (5, 21, 7), (1, 3, 1), (3, 15, 15)])
def test_a_stored_weight_is_the_weight_in_the_bytes_of_the_formula(bits, symmetric, rows, width, group):
    precision = Precision(bits, symmetric)
    codes = quantise(draw(rows, width) + 0.5, precision, group)
    stored = StoredWeight.of(codes, precision)
    back = stored.codes()
    for name in ("codes", "scale", "zero"):
        assert torch.equal(getattr(back, name), getattr(codes, name)), name
    assert torch.equal(back.dequantised(), codes.dequantised())
    parts = [part for part in (stored.packed, stored.scale, stored.zero) if part is not None]
    assert sum(p.numel() * p.element_size() for p in parts) == stored_bytes(rows, width, group, precision)


def test_the_formula_gives_the_known_sizes():
    # 4 bits and groups of 128: half a byte a weight, and 4.5 bytes of scale and zero point for every 128 of them.
    assert stored_bytes(1152, 1152, 128, Precision(4)) == 1152 * 1152 // 2 + 1152 * 9 * 9 // 2
    assert stored_bytes(1152, 1152, 128, Precision(8, symmetric=True)) == 1152 * 1152 + 1152 * 9 * 4
    assert_close(stored_bytes(1152, 4608, 128, Precision(6)) / (1152 * 4608 * 2), 0.393, rtol=2e-3, atol=0)


def test_a_stored_weight_shares_no_memory_with_what_it_was_made_from():
    codes = quantise(draw(4, 8), Precision(4), 4)
    stored = StoredWeight.of(codes, Precision(4))
    before = stored.codes().dequantised()
    codes.scale.mul_(2)
    assert torch.equal(stored.codes().dequantised(), before)


@pytest.mark.parametrize("bits", [1, 7, 16])
def test_other_bit_widths_are_refused(bits):
    with pytest.raises(ValueError, match=rf"bits must be one of 2, 3, 4, 5, 6, 8 to be packed, got {bits}"):
        pack(random_codes(1, 4), bits)


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="codes of 4 bits must be below 16, got 16"):
        pack(torch.tensor([3, 16], dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="5 codes of 4 bits take 3 bytes, got 2"):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.full((2, 4), 16, dtype=torch.int16)}, "codes must be in 0..15, got 16..16"),
        ({"zero": torch.full((2, 1), -1, dtype=torch.int16)}, "zero points must be in 0..15"),
        ({"scale": torch.tensor([[1.0], [torch.nan]])}, "scales must be finite"),
        ({"codes": torch.zeros(4, dtype=torch.int16)}, r"codes \[rows, width\]"),
    ],
)
def test_an_unsound_weight_is_refused(change, message):
    sound = {
        "codes": torch.zeros(2, 4, dtype=torch.int16),
        "scale": torch.ones(2, 1),
        "zero": torch.zeros(2, 1, dtype=torch.int16),
    }
    parts = sound | change
    if parts["codes"].ndim == 1:
        parts |= {"scale": torch.ones(1), "zero": torch.zeros(1, dtype=torch.int16)}
    with pytest.raises(ValueError, match=message):
        StoredWeight.of(Codes(**parts, group=4), Precision(4))


def test_sixteen_bits_are_not_packed():
    codes = quantise(draw(2, 4), Precision(8), 4)
    with pytest.raises(ValueError, match="2 to 8 bits"):
        StoredWeight.of(codes, Precision(16))
