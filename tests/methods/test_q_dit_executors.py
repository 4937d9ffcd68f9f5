"""Laws of execution: integers give what the simulation gives, whatever computes them; no input is quantised twice."""

import copy
import itertools
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mezzotint.methods.q_dit import executors
from mezzotint.methods.q_dit.executors import fused as fused_module
from mezzotint.methods.q_dit.executors import integer, native, operands
from mezzotint.methods.q_dit.executors.native import LEVELS, Library
from mezzotint.methods.q_dit.executors.operands import IntegerInput, IntegerWeight, encode_input, zero_point_terms
from mezzotint.methods.q_dit.executors.simulate import Simulate
from mezzotint.methods.q_dit.linear import QuantLinear, share_inputs
from mezzotint.methods.q_dit.packing import StoredWeight
from mezzotint.methods.q_dit.quantiser import Codes, LayerSpec, Precision, quantise, ranges_to_grid
from mezzotint.methods.q_dit.shared_input import SharedInput

TOLERANCE = 1e-6
SYMMETRIES = list(itertools.product([False, True], repeat=2))
LIBRARY = native.library()
BUILT = pytest.mark.skipif(LIBRARY is None, reason="no compiler here")
ABLE = LEVELS[: LIBRARY.best + 1] if LIBRARY else ()
WAYS = [("integer", "best"), *(("fused", level) for level in ABLE)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_spec(group, *, weight=8, activation=8, symmetric=(False, False), **options):
    return LayerSpec(Precision(weight, symmetric[0]), Precision(activation, symmetric[1]), group, **options)


def make_layer(spec, width=192, rows=70, *, bias=True, executor="simulate", seed=0, **options):
    codes = quantise(0.05 * draw(rows, width, seed=seed), spec.weight, spec.group)
    shift = draw(rows, seed=seed + 1) if bias else None
    return QuantLinear.from_codes(codes, shift, spec, executor=executor, **options)


def again(layer, executor, level="best"):
    """The same layer, computed in another way."""
    other = copy.deepcopy(layer)
    other.executor, other.level = executor, level
    return other


def difference(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """The kernels with the matrix unit's tiles in plain loops: its addresses and order, checked on any processor."""
    if LIBRARY is None or LEVELS.index("vnni") > LIBRARY.best:
        pytest.skip("the tile kernels' other half needs AVX512-VNNI and a compiler")
    folder = tmp_path_factory.mktemp("kernels")
    return Library(native.build(folder, extra=("-DMZ_EMULATED_TILES", "-O1")))


class TestIntegerIsSimulation:
    @pytest.mark.parametrize("symmetric", SYMMETRIES)
    @pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 192])
    def test_every_group_size_and_symmetry(self, group, symmetric):
        layer = make_layer(make_spec(group, symmetric=symmetric))
        x = 3 * draw(7, 192) + 1
        expected = layer(x)
        for executor, level in WAYS:
            assert difference(again(layer, executor, level)(x), expected) < TOLERANCE, (executor, level)

    @pytest.mark.parametrize(("weight", "activation"), [(2, 8), (3, 8), (4, 8), (5, 6), (6, 8), (8, 4), (4, 4)])
    def test_every_bit_width(self, weight, activation):
        layer = make_layer(make_spec(32, weight=weight, activation=activation))
        x = draw(9, 192)
        for executor, level in WAYS:
            assert difference(again(layer, executor, level)(x), layer(x)) < TOLERANCE, (executor, level)

    @pytest.mark.parametrize("rows", [1, 15, 16, 64, 65, 130])
    @pytest.mark.parametrize("tokens", [1, 2, 5, 6, 7, 31, 32, 33, 200])
    def test_every_number_of_tokens_and_rows(self, tokens, rows):
        layer = make_layer(make_spec(64), width=128, rows=rows)
        x = draw(tokens, 128)
        for executor, level in WAYS:
            assert difference(again(layer, executor, level)(x), layer(x)) < TOLERANCE, (executor, level)

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("shape", [(2, 3, 5, 192), (4, 192), (192,), (1, 1, 192)])
    def test_batch_axes_with_and_without_bias(self, shape, bias):
        layer = make_layer(make_spec(48), bias=bias)
        x = draw(*shape)
        flat = layer(x.reshape(-1, 192))
        for executor, level in WAYS:
            ours = again(layer, executor, level)(x)
            assert ours.shape == (*shape[:-1], 70)
            assert difference(ours.reshape(-1, 70), flat) < TOLERANCE, (executor, level)

    @pytest.mark.parametrize("ranges", ["token", "sample", "static"])
    @pytest.mark.parametrize("x", [draw(192, 9).T, draw(1, 192, 4, 4).permute(0, 2, 3, 1).reshape(1, 16, 192)])
    def test_an_input_that_is_not_contiguous(self, x, ranges):
        spec = make_spec(48, act_scope="token" if ranges == "static" else ranges)
        layer = make_layer(spec)
        if ranges == "static":
            spec = make_spec(48, act_range="static")
            grid = ranges_to_grid(torch.full((4,), -3.0), torch.full((4,), 3.0), spec.activation)
            layer = make_layer(spec, static_grid=grid)
        assert not x.is_contiguous()
        for executor, level in WAYS:
            ours = again(layer, executor, level)
            assert torch.equal(ours(x), ours(x.contiguous())), (executor, level)
            assert difference(ours(x), layer(x)) < TOLERANCE, (executor, level)

    @pytest.mark.parametrize("scope", ["token", "sample"])
    def test_either_scope(self, scope):
        layer = make_layer(make_spec(64, act_scope=scope))
        x = draw(3, 5, 192) * torch.tensor([1.0, 5.0, 0.2])[:, None, None]
        for executor, level in WAYS:
            assert difference(again(layer, executor, level)(x), layer(x)) < TOLERANCE, (executor, level)

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_static_ranges(self, symmetric):
        spec = make_spec(64, symmetric=(False, symmetric), act_range="static")
        grid = ranges_to_grid(torch.tensor([-1.0, -2, -3]), torch.tensor([2.0, 1, 0.5]), spec.activation)
        layer = make_layer(spec, static_grid=grid)
        x = 2 * draw(11, 192)
        for executor, level in WAYS:
            assert difference(again(layer, executor, level)(x), layer(x)) < TOLERANCE, (executor, level)

    @pytest.mark.parametrize("tokens", [1, 3, 40])
    @pytest.mark.parametrize("weight", [4, 6, 8])
    def test_weight_only(self, weight, tokens):
        layer = make_layer(make_spec(64, weight=weight, activation=16))
        x = draw(tokens, 192)
        expected = nn.functional.linear(x, layer.dequantised_weight(), layer.bias)
        assert_close(layer(x), expected, rtol=0, atol=0)
        for executor, level in WAYS:
            assert difference(again(layer, executor, level)(x), expected) < TOLERANCE, (executor, level)

    def test_a_divided_input(self):
        layer = make_layer(make_spec(64), input_scale=torch.rand(192) + 0.5)
        plain = make_layer(make_spec(64))
        x = draw(6, 192)
        assert_close(layer(x), plain(x / layer.input_scale), rtol=0, atol=0)
        for executor, level in WAYS:
            assert difference(again(layer, executor, level)(x), layer(x)) < TOLERANCE, (executor, level)

    def test_one_signed_groups_and_outliers(self):
        """Zero points at the ends of the codes, where integer terms and corrections are largest."""
        layer = make_layer(make_spec(64, weight=4))
        x = draw(8, 192).abs() + 3
        x[:, 5] *= 50
        for executor, level in WAYS:
            assert difference(again(layer, executor, level)(x), layer(x)) < TOLERANCE, (executor, level)

    @pytest.mark.parametrize("symmetric", SYMMETRIES)
    @pytest.mark.parametrize("weight", [4, 8])
    @pytest.mark.parametrize(("width", "group"), [(1152, 32), (1152, 128), (4608, 128), (4608, 4608), (195, 39)])
    def test_widths_of_large_and_odd_layers_with_offsets_and_outliers(self, width, group, weight, symmetric):
        layer = make_layer(make_spec(group, weight=weight, symmetric=symmetric), width=width)
        offset = draw(7, width).abs() + 3
        outliers = draw(7, width) * torch.where(torch.arange(width) % 97 == 0, 50.0, 1.0) + 1
        for x in (draw(7, width), offset, outliers):
            for executor, level in WAYS:
                assert difference(again(layer, executor, level)(x), layer(x)) < TOLERANCE, (executor, level)

    def test_without_whole_numbers_the_law_fails_beside_outliers(self, monkeypatch):
        layer = make_layer(make_spec(128), width=4608)
        x = draw(7, 4608) * torch.where(torch.arange(4608) % 97 == 0, 50.0, 1.0) + 1
        assert difference(again(layer, "integer")(x), layer(x)) < TOLERANCE
        monkeypatch.setattr(integer, "_CANCELLED", float("inf"))
        assert difference(again(layer, "integer")(x), layer(x)) > TOLERANCE


class TestZeroPointTerms:
    @pytest.mark.parametrize("shift", [0, 128])
    @pytest.mark.parametrize("symmetric", SYMMETRIES)
    def test_the_collapsed_correction_is_the_naive_one(self, symmetric, shift):
        spec = make_spec(16, symmetric=symmetric)
        x = encode_input(draw(5, 48) + 1, spec, None)
        weight = IntegerWeight.of(StoredWeight.of(quantise(draw(7, 48), spec.weight, 16), spec.weight))
        codes = x.codes.double().unflatten(1, (3, 16)), weight.codes.double().unflatten(1, (3, 16))
        zeros = x.zero.double(), torch.zeros(7, 3).double() if weight.zero is None else weight.zero.double()
        naive = torch.zeros(5, 7, dtype=torch.float64)
        for u in range(3):
            moved = (codes[0][:, u] - zeros[0][:, u, None]) @ (codes[1][:, u] - zeros[1][:, u, None]).T
            taken = (codes[0][:, u] - shift) @ codes[1][:, u].T
            naive += (taken - moved) * x.scale[:, u, None] * weight.scale[None, :, u]
        assert_close(zero_point_terms(x, weight, shift=shift).double(), naive, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("term", ["total", "zero"])
    def test_without_a_term_the_law_fails(self, term, monkeypatch):
        layer = make_layer(make_spec(64))
        x = draw(5, 192) + 1
        expected = layer(x)
        original = IntegerInput.of.__func__

        def broken(cls, codes, precision):
            made = original(cls, codes, precision)
            parts = {name: getattr(made, name) for name in ("codes", "scale", "zero", "total", "group")}
            return IntegerInput(**parts | {term: torch.zeros_like(parts[term])})

        monkeypatch.setattr(IntegerInput, "of", classmethod(broken))
        assert difference(again(layer, "integer")(x), expected) > 1e-3

    def test_a_symmetric_weight_needs_one_product(self):
        spec = make_spec(16, symmetric=(True, False))
        weight = IntegerWeight.of(StoredWeight.of(quantise(draw(7, 48), spec.weight, 16), spec.weight))
        assert weight.zero is None
        assert operands.centre(spec.weight) == 0


class TestStockOperators:
    def test_plain_products_are_onednn_s(self, monkeypatch):
        codes = torch.randint(-128, 128, (9, 20), generator=torch.Generator().manual_seed(0)).to(torch.int8)
        x = torch.randint(0, 256, (5, 20), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
        exact = ((x.long() - 7) @ codes.long().T).float()
        assert torch.equal(integer.GroupProducts(codes, torch.ones(9))(x, 7), exact)
        monkeypatch.setattr(integer, "has_onednn", lambda _: False)
        assert torch.equal(integer.GroupProducts(codes, torch.ones(9))(x, 7), exact)

    def test_the_law_holds_without_onednn(self, monkeypatch):
        monkeypatch.setattr(integer, "has_onednn", lambda _: False)
        layer = make_layer(make_spec(64))
        x = draw(5, 192)
        assert difference(again(layer, "integer")(x), layer(x)) < TOLERANCE


@BUILT
class TestKernels:
    @pytest.mark.parametrize("level", ABLE)
    @pytest.mark.parametrize(("bits", "symmetric"), list(itertools.product([2, 4, 6, 8], [False, True])))
    @pytest.mark.parametrize("group", [1, 5, 16, 40])
    def test_their_codes_are_the_quantiser_s_bit_for_bit(self, level, bits, symmetric, group):
        spec = make_spec(group, activation=bits, symmetric=(False, symmetric))
        x = draw(12, 80)
        x[1] = 0
        x[2] = 3.0
        x[3] = x[3].abs() + 7
        x[4] *= 1e30
        x[5] *= 1e-12
        x[6] = torch.arange(80) / 2 - 20
        x[7, ::3] = 0
        x[8, 11] = 1e4
        ours, theirs = LIBRARY.quantise(x, spec, level), encode_input(x, spec, None)
        for name in ("codes", "scale", "zero", "total"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name

    @pytest.mark.parametrize("level", ABLE)
    @pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("at", [0, 17, 79])
    def test_numbers_that_are_not_finite_are_refused(self, level, wrong, at):
        x = draw(3, 80)
        x[1, at] = wrong
        with pytest.raises(ValueError, match="must be finite"):
            LIBRARY.quantise(x, make_spec(20), level)

    @pytest.mark.parametrize("level", ABLE)
    @pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
    def test_their_expansion_is_the_codes_(self, level, bits):
        stored = StoredWeight.of(quantise(draw(37, 51), Precision(bits), 17), Precision(bits))
        assert torch.equal(LIBRARY.dequantise(native.KernelWeight(stored), level), stored.codes().dequantised())

    @pytest.mark.parametrize("tokens", [1, 31, 32, 33, 100])
    @pytest.mark.parametrize(("width", "rows", "group"), [(128, 64, 64), (384, 70, 128), (192, 33, 192), (64, 1, 64)])
    def test_tiles(self, tiles, tokens, width, rows, group):
        assert LEVELS[tiles.best] == "amx"
        for symmetric in SYMMETRIES:
            layer = make_layer(make_spec(group, weight=4, symmetric=symmetric), width=width, rows=rows)
            x = draw(tokens, width)
            way = fused_module.Fused(layer.stored_weight(), layer.spec, tiles, "amx")
            assert difference(way.multiply(way.prepare(x, None), layer.bias), layer(x)) < TOLERANCE

    def test_codes_at_their_ends_do_not_saturate(self, tiles):
        """255 times -128, everywhere, is where 16-bit sums would overflow."""
        width = 256
        spec = make_spec(width, symmetric=(True, False))
        codes = Codes(
            torch.full((20, width), -128, dtype=torch.int16), torch.ones(20, 1), torch.zeros(20, 1).short(), width
        )
        stored = StoredWeight.of(codes, spec.weight)
        whole = torch.full((9, width), 255, dtype=torch.uint8)
        numbers = torch.ones(9, 1), torch.zeros(9, 1).int(), torch.full((9, 1), 255 * width).int()
        for library, level in [*((LIBRARY, level) for level in ABLE), (tiles, "amx")]:
            out = library.linear(IntegerInput(whole, *numbers, width), native.KernelWeight(stored), None, level)
            assert torch.equal(out, torch.full((9, 20), -128.0 * 255 * width)), level

    def test_a_level_that_the_processor_lacks_is_replaced_with_one_warning(self, monkeypatch):
        monkeypatch.setattr(LIBRARY, "best", LEVELS.index("avx2"))
        native._say.cache_clear()
        layer = make_layer(make_spec(64))
        x = draw(5, 192)
        with pytest.warns(RuntimeWarning, match="cannot run amx kernels: avx2 ones are used"):
            first = again(layer, "fused", "amx")(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(again(layer, "fused", "amx")(x), first)
        assert difference(first, layer(x)) < TOLERANCE

    def test_an_unknown_level_is_refused(self):
        with pytest.raises(ValueError, match="level must be best, portable, avx2, vnni, amx, got 'sse'"):
            LIBRARY.level("sse")

    def test_threads_do_not_change_the_result(self):
        layer = again(make_layer(make_spec(64), width=128, rows=200), "fused")
        x = draw(300, 128)
        before = torch.get_num_threads()
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(layer(x))
        torch.set_num_threads(before)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


class TestBuilding:
    def test_without_a_compiler_one_warning_and_the_same_numbers(self, monkeypatch):
        monkeypatch.setattr(native.shutil, "which", lambda _: None)
        monkeypatch.setattr(native, "library", native.lru_cache(maxsize=1)(native.library.__wrapped__))
        native._say.cache_clear()
        layer = make_layer(make_spec(64))
        x = draw(5, 192)
        ours = again(layer, "fused")
        with pytest.warns(RuntimeWarning, match="could not be built .no C.. compiler was found."):
            out = ours(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again(layer, "auto")(x)
        assert difference(out, layer(x)) < TOLERANCE
        assert ours.running() in {"integer", "simulate"}

    @BUILT
    def test_a_compiler_that_fails_leaves_nothing_behind(self, tmp_path):
        with pytest.raises(RuntimeError):
            native.build(tmp_path, extra=("-DMZ_EMULATED_TILES=", "-no-such-flag-at-all"))
        assert list(tmp_path.iterdir()) == []

    @BUILT
    def test_a_second_build_of_one_process_is_found(self, tmp_path):
        """torch appends a number to the name of a library that the process has built before."""
        first, second = (native.build(tmp_path / name, extra=("-O0",)) for name in ("first", "second"))
        assert first.is_file()
        assert second.is_file()
        assert Library(second).best == LIBRARY.best

    def test_a_folder_that_others_may_write_to_is_refused(self, tmp_path):
        tmp_path.chmod(0o777)
        with pytest.raises(PermissionError, match="may be written by other users"):
            native.build(tmp_path)

    @pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler here")
    def test_the_kernels_compile_without_warnings(self):
        # Uninitialised: the compiler's own header of undefined vectors is what it warns of.
        flags = [
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-uninitialized",
            "-Wno-maybe-uninitialized",
            "-std=c++17",
            "-fopenmp",
        ]
        subprocess.run(["g++", *flags, "-O1", "-fsyntax-only", str(native._SOURCE)], check=True)


class TestFastMode:
    def test_its_definition(self):
        layer = make_layer(make_spec(64, weight=4))
        x = draw(6, 192)
        weight = layer.dequantised_weight()
        rows = quantise(weight, Precision(8, symmetric=True), 192).dequantised()
        tokens = quantise(x, Precision(8, symmetric=True), 192).dequantised()
        assert difference(again(layer, "fast")(x), nn.functional.linear(tokens, rows, layer.bias)) < TOLERANCE

    def test_it_is_exact_where_one_scale_a_row_is_what_the_layer_has(self):
        layer = make_layer(make_spec(192, symmetric=(True, True)))
        x = draw(6, 192)
        assert difference(again(layer, "fast")(x), layer(x)) < TOLERANCE

    def test_it_is_not_exact_otherwise(self):
        layer = make_layer(make_spec(32, weight=4))
        x = draw(6, 192)
        assert 1e-4 < difference(again(layer, "fast")(x), layer(x)) < 0.05

    def test_weight_only_layers_are_left_to_the_others(self):
        layer = again(make_layer(make_spec(64, activation=16)), "fast")
        assert layer.running() != "fast"


class TestTheLayer:
    @pytest.mark.parametrize(("executor", "level"), WAYS)
    def test_samples_and_tokens_do_not_meet(self, executor, level):
        layer = again(make_layer(make_spec(64)), executor, level)
        x = draw(3, 5, 192) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
        whole = layer(x)
        for i in range(3):
            assert_close(layer(x[i : i + 1]), whole[i : i + 1], rtol=1e-6, atol=1e-6)
        order = torch.tensor([3, 0, 4, 1, 2])
        assert_close(layer(x[:, order]), whole[:, order], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("executor", ["simulate", "integer", "fused", "fast", "auto"])
    def test_no_tokens_give_no_output_and_no_channels_give_the_bias(self, executor):
        layer = again(make_layer(make_spec(64)), executor)
        assert torch.equal(layer(torch.zeros(0, 192)), torch.zeros(0, 70))
        assert torch.equal(layer(torch.zeros(2, 0, 192)), torch.zeros(2, 0, 70))
        spec = make_spec(1)
        empty = Codes(torch.zeros(3, 0).short(), torch.zeros(3, 0), torch.zeros(3, 0).short(), 1)
        none = QuantLinear.from_codes(empty, torch.tensor([1.0, 2, 3]), spec, executor=executor)
        assert torch.equal(none(torch.zeros(2, 0)), torch.tensor([[1.0, 2, 3]] * 2))

    def test_nothing_of_the_weight_is_kept_in_floating_point(self):
        layer = make_layer(make_spec(64, weight=4))
        layer(draw(2, 192))
        state = layer.state_dict()
        assert set(state) == {"packed", "scale", "zero", "bias"}
        dense = 70 * 192
        assert all(t.numel() < dense / 8 for t in state.values() if t.is_floating_point())
        assert state["packed"].numel() == dense // 2
        held = [t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point() and t.numel() >= dense]
        assert held == []

    @pytest.mark.parametrize("executor", ["simulate", "integer", "fused", "fast"])
    def test_another_layer_s_state_makes_it_that_layer(self, executor):
        x = draw(4, 192)
        one, other = (again(make_layer(make_spec(64, weight=6), seed=seed), executor) for seed in (0, 7))
        expected = other(x)
        assert not torch.equal(one(x), expected)
        one.load_state_dict(other.state_dict())
        assert torch.equal(one(x), expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_a_change_of_dtype_leaves_integers_and_scales_alone(self, dtype):
        layer = make_layer(make_spec(64, weight=4), input_scale=torch.rand(192) + 0.5)
        weight, x = layer.dequantised_weight(), draw(3, 192).to(dtype)
        expected = layer(x.float())
        layer.to(dtype)
        assert layer.bias.dtype == dtype
        assert {layer.scale.dtype, layer.input_scale.dtype} == {torch.float32}
        assert torch.equal(layer.dequantised_weight(), weight)
        out = layer(x)
        assert out.dtype == dtype
        assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("executor", ["integer", "fused", "fast", "simulate"])
    def test_a_copy_is_independent(self, executor):
        layer = again(make_layer(make_spec(64)), executor)
        x = draw(2, 192)
        expected = layer(x)
        other = copy.deepcopy(layer)
        other.bias += 1
        assert torch.equal(layer(x), expected)
        assert_close(other(x), expected + 1)

    @pytest.mark.parametrize("weight", [2, 3, 4, 6, 8])
    @pytest.mark.parametrize("library", [None, pytest.param(LIBRARY, marks=BUILT)])
    def test_a_simulation_may_leave_its_weight_packed(self, weight, library):
        layer = make_layer(make_spec(64, weight=weight))
        x = draw(5, 192)
        lean = Simulate(layer.stored_weight(), layer.spec, dense=False, library=library)
        assert torch.equal(lean.multiply(lean.prepare(x, None), layer.bias), layer(x))
        assert lean.resident_bytes() == (0 if library is None else 70 * 3 * 4)

    @BUILT
    def test_without_an_integer_unit_nothing_is_kept_in_float(self, monkeypatch):
        monkeypatch.setattr(LIBRARY, "best", LEVELS.index("avx2"))
        monkeypatch.setattr(executors, "has_onednn", lambda _: False)
        layer = make_layer(make_spec(64, weight=4))
        lean = again(layer, "auto")
        x = draw(5, 192)
        assert torch.equal(lean(x), layer(x))
        assert lean.running() == "simulate"
        assert lean.resident_bytes() == layer.held_bytes() + 70 * 3 * 4, "zero points as integers, no float32 weight"

    def test_resident_bytes_are_those_of_the_tensors_and_the_executor(self):
        layer = make_layer(make_spec(64, weight=4))
        held = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
        assert layer.resident_bytes() == held == layer.held_bytes()
        layer(draw(1, 192))
        assert layer.resident_bytes() == held + 70 * 192 * 4, "the simulation keeps the weight in float32"
        if LIBRARY:
            packed = again(layer, "fused")
            packed(draw(1, 192))
            assert packed.resident_bytes() == held + 70 * 3 * 4, "the kernels keep the zero points as integers"

    @pytest.mark.parametrize(
        ("change", "x", "message"),
        [
            ({}, torch.zeros(2, 191), "the input must have 192 channels, got 191"),
            ({"training": True}, torch.zeros(2, 192), "cannot be trained"),
            ({}, torch.zeros(2, 192, requires_grad=True), "gives no gradient"),
            ({}, torch.full((2, 192), torch.nan), "must be finite"),
            ({"executor": "integer"}, torch.full((2, 192), torch.inf), "must be finite"),
            ({"executor": "auto"}, torch.full((2, 192), torch.inf), "must be finite"),
            ({"executor": "gpu"}, torch.zeros(2, 192), "executor must be one of simulate, integer, fused, fast, auto"),
        ],
    )
    def test_what_cannot_be_computed_is_refused(self, change, x, message):
        layer = make_layer(make_spec(64))
        for name, value in change.items():
            setattr(layer, name, value)
        with pytest.raises(ValueError, match=message):
            layer(x)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"spec": make_spec(32)}, "the weight has groups of 64, its spec says 32"),
            ({"spec": make_spec(64, act_range="static")}, "needs a static grid: calibrate first"),
            ({"static_grid": (torch.ones(3), torch.zeros(3).short())}, "takes no static grid"),
            ({"executor": "best"}, "executor must be one of"),
            ({"spec": LayerSpec(Precision(16), Precision(8), 64)}, "2 to 8 bits"),
        ],
    )
    def test_a_layer_that_does_not_fit_together_is_refused(self, options, message):
        codes = quantise(draw(7, 192), Precision(8), 64)
        arguments = {"spec": make_spec(64)} | options
        with pytest.raises(ValueError, match=message):
            QuantLinear.from_codes(codes, None, arguments.pop("spec"), **arguments)

    def test_no_gradient_is_no_obstacle_where_none_is_recorded(self):
        layer = make_layer(make_spec(64))
        with torch.no_grad():
            assert torch.equal(layer(torch.ones(1, 192, requires_grad=True)), layer(torch.ones(1, 192)))


class Attention(nn.Module):
    """Three projections of one input, as attention processors call them."""

    def __init__(self, executor, specs):
        super().__init__()
        for seed, (name, spec) in enumerate(zip(("to_q", "to_k", "to_v"), specs, strict=True)):
            setattr(self, name, make_layer(spec, seed=seed, executor=executor))

    def forward(self, x):
        return self.to_q(x), self.to_k(x), self.to_v(x)


class TestSharedInput:
    @pytest.fixture
    def count(self, monkeypatch):
        made = []
        original = operands.quantise

        def counting(*args, **kwargs):
            made.append(1)
            return original(*args, **kwargs)

        monkeypatch.setattr(operands, "quantise", counting)
        return made

    @pytest.mark.parametrize("executor", ["simulate", "integer", "fused", "fast"])
    def test_the_results_are_those_of_layers_that_share_nothing(self, executor):
        attention = Attention(executor, [make_spec(64)] * 3)
        x = draw(5, 192)
        alone = attention(x)
        assert share_inputs(attention) == 1
        for _ in range(2):
            for ours, theirs in zip(attention(x), alone, strict=True):
                assert torch.equal(ours, theirs)

    def test_it_is_quantised_once_a_pass(self, count):
        attention = Attention("integer", [make_spec(64)] * 3)
        share_inputs(attention)
        x = draw(5, 192)
        for passes in (1, 2, 3):
            attention(x)
            assert len(count) == passes

    def test_layers_that_quantise_differently_do_not_share(self, count):
        attention = Attention("integer", [make_spec(64), make_spec(32), make_spec(64, activation=6)])
        assert share_inputs(attention) == 0
        attention(draw(5, 192))
        assert len(count) == 3

    def test_a_change_in_place_is_seen(self):
        attention = Attention("integer", [make_spec(64)] * 3)
        share_inputs(attention)
        x = draw(5, 192)
        attention.to_q(x)
        x *= 2
        assert torch.equal(attention.to_k(x), copy.deepcopy(attention.to_k)(x))

    def test_an_equal_tensor_is_another_tensor(self, count):
        attention = Attention("integer", [make_spec(64)] * 3)
        share_inputs(attention)
        x = draw(5, 192)
        attention.to_q(x)
        attention.to_k(x.clone())
        assert len(count) == 2

    def test_nothing_is_kept_after_the_last_member_or_the_tensor_s_end(self):
        shared = SharedInput(2)
        x = draw(1, 4)
        assert shared.get(x, 0, lambda: "first") == "first"
        assert shared.get(x, 1, lambda: "second") == "first"
        assert shared._entry is None
        shared.get(x, 0, lambda: "third")
        reference = shared._entry.tensor
        del x
        assert reference() is None
        y = draw(1, 4)
        assert shared.get(y, 1, lambda: "fourth") == "fourth"

    def test_a_member_that_asks_again_gets_a_new_one(self):
        shared, x = SharedInput(3), draw(1, 4)
        assert [shared.get(x, 0, lambda k=k: k) for k in (1, 2)] == [1, 2]
        assert shared.get(x, 1, lambda: 3) == 2

    def test_tensors_of_inference_mode_are_not_shared(self, count):
        attention = Attention("integer", [make_spec(64)] * 3)
        share_inputs(attention)
        with torch.inference_mode():
            attention(draw(5, 192))
        assert len(count) == 3

    def test_a_copied_model_shares_with_itself_alone(self):
        attention = Attention("integer", [make_spec(64)] * 3)
        share_inputs(attention)
        attention.to_q(draw(2, 192))
        other = copy.deepcopy(attention)
        assert other.to_q._shared[0] is other.to_k._shared[0]
        assert other.to_q._shared[0] is not attention.to_q._shared[0]


def test_the_door_of_the_executors_names_what_runs():
    layer = make_layer(make_spec(64))
    assert again(layer, "simulate").running() == "simulate"
    assert again(layer, "integer").running() == "integer"
    expected = "fused" if LIBRARY and LEVELS[LIBRARY.best] in {"vnni", "amx"} else again(layer, "auto").running()
    assert again(layer, "auto").running() == expected
    assert "cpp_extension" not in sys.modules
