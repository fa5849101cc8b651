"""Which library multiplies: float32 stays float32, the switch is put back, and a wrong request is refused."""

from __future__ import annotations

import pytest
import torch

from proxy_models import products
from proxy_models.products import SWITCH, fast_products, product_library


@pytest.fixture(autouse=True)
def forget() -> object:
    """The choice is made once per process."""
    product_library.cache_clear()
    yield
    product_library.cache_clear()


@pytest.mark.parametrize("library", ["mkl", "onednn"])
def test_products_stay_float32_and_the_switch_is_put_back(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, library)
    if library == "onednn" and not products._accurate():
        pytest.skip("on this processor oneDNN would round to bfloat16")
    before = torch.backends.mkldnn.matmul.fp32_precision
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(3, 40, 96, generator=generator), torch.randn(3, 96, 24, generator=generator)
    with fast_products():
        product = torch.bmm(one, other)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert (product - torch.bmm(one.double(), other.double())).abs().max() < 1e-4  # bfloat16 is off by .1


def test_the_switch_is_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyError), fast_products():
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_wrong_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "blas")
    with pytest.raises(ValueError, match="'mkl' or 'onednn'"):
        product_library()
    product_library.cache_clear()
    monkeypatch.setenv(SWITCH, "onednn")
    monkeypatch.setattr(products, "_accurate", lambda: False)
    with pytest.raises(ValueError, match="unset it"):
        product_library()


def test_without_a_request_a_library_that_would_round_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(products, "_amd_with_avx512", lambda: True)
    monkeypatch.setattr(products, "_accurate", lambda: False)
    assert product_library() == "mkl"
