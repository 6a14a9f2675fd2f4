"""torch.ops.asvp.perturb by libasvp: taken where it should be, right for every layout, and turned off on demand."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import asvp_export
from asvp_export import Perturbation, reference
from asvp_export.operator import native
from tests.helpers.criterion import REFERENCE32, REFERENCE64, check
from tests.helpers.spectra import ENERGIES, GAINS, feature_maps

perturb = torch.ops.asvp.perturb


def made(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_this_installation_has_the_library():
    """The project's own installation builds it: without a compiler every other test of this file would be empty."""
    assert native.unavailable() is None
    assert ctypes.CDLL(asvp_export.library_path()).asvp_abi_version() == 1


def test_the_kernel_is_what_runs():
    x = made(1, 64, 40, 41)
    calls = torch.ops.asvp.perturb(x, 4, 3.0, 1.0, 1)
    assert native.takes(x)
    assert torch.equal(calls, native.perturb(x, Perturbation(4, 3.0)))
    assert not torch.equal(calls, reference(x, 4, 3.0))  # as right, but another order of sums


def test_the_kernels_can_be_turned_off(monkeypatch):
    x = made(1, 64, 40, 41)
    by_kernel, by_reference = perturb(x, 4, 3.0, 1.0, 1), reference(x, 4, 3.0)
    monkeypatch.setenv("ASVP_DISABLE_NATIVE", "1")
    assert torch.equal(perturb(x, 4, 3.0, 1.0, 1), by_reference)
    with pytest.raises(asvp_export.MachineError, match="ASVP_DISABLE_NATIVE"):
        asvp_export.library_path()
    monkeypatch.setenv("ASVP_DISABLE_NATIVE", "0")
    assert torch.equal(perturb(x, 4, 3.0, 1.0, 1), by_kernel)


def test_an_oracle_can_ask_for_the_reference():
    x = made(1, 64, 40, 41)
    with native.reference_only():
        assert torch.equal(perturb(x, 4, 3.0, 1.0, 1), reference(x, 4, 3.0))
    assert not torch.equal(perturb(x, 4, 3.0, 1.0, 1), reference(x, 4, 3.0))


@settings(max_examples=100, deadline=None)
@given(feature_maps(), st.integers(1, 6), GAINS, ENERGIES, st.booleans())
def test_the_kernel_is_correct(mapped, rank, gain, energy, wide):
    x, axis = mapped
    x = x.astype(np.float64 if wide else np.float32)
    y = perturb(torch.from_numpy(x), rank, gain, energy, axis).numpy()
    check(x, y, rank, gain, energy, axis, REFERENCE64 if wide else REFERENCE32)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "rows outside": lambda x: x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3),
    "samples inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "some channels": lambda x: x[:, 1:5],
    "every second column": lambda x: x[..., ::2],
    "expanded": lambda x: x[:1].expand(3, *x.shape[1:]),
    "one column": lambda x: x[..., :1],
    "one position": lambda x: x[..., :1, :1],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_what_a_contiguous_map_gives_and_is_kept(layout, dtype):
    x = LAYOUTS[layout](made(2, 9, 11, 14, dtype=dtype))
    y = perturb(x, 2, 3.0, 0.95, 1)
    assert y.shape == x.shape and y.stride() == torch.empty_like(x).stride()
    steps = {torch.float32: 1e-5, torch.float64: 1e-10, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(y, perturb(x.contiguous(), 2, 3.0, 0.95, 1), rtol=steps, atol=steps)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "samples inside"])
def test_dense_layouts_are_read_where_they_lie(layout):
    assert native._problem(LAYOUTS[layout](made(2, 9, 11, 14)), Perturbation(2)) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_bits_do_not_depend_on_the_threads(dtype):
    x, before = made(3, 24, 90, 91, dtype=dtype), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(perturb(x, 3, 2.0, 0.99, 1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_the_gradient_is_that_of_the_reference(monkeypatch):
    def gradient() -> torch.Tensor:
        x = made(2, 6, 7, 5, dtype=torch.float64).requires_grad_()
        perturb(x, 2, 3.0, 1.0, 1).pow(3).sum().backward()
        assert x.grad is not None
        return x.grad

    by_kernel = gradient()
    monkeypatch.setenv("ASVP_DISABLE_NATIVE", "1")
    torch.testing.assert_close(by_kernel, gradient(), rtol=1e-9, atol=1e-9)


def test_bad_attributes_are_refused_as_the_reference_does():
    for attributes in [(0, 1.1, 1.0, 1), (1, -1.0, 1.0, 1), (1, 1.1, 2.0, 1), (1, 1.1, 1.0, 4), (1, 1.1, 1.0, 0)]:
        with pytest.raises(asvp_export.InputError):
            perturb(made(1, 3, 4, 4), *attributes)


def test_calls_from_several_threads_at_once_do_not_meet():
    from concurrent.futures import ThreadPoolExecutor

    maps = [made(2, 8 + 5 * i, 30, 31, seed=i) for i in range(4)]
    expected = [perturb(x, 2, 3.0, 1.0, 1) for x in maps]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(10):
                results = list(pool.map(lambda x: perturb(x, 2, 3.0, 1.0, 1), maps))
                assert all(map(torch.equal, results, expected))
    finally:
        torch.set_num_threads(before)
