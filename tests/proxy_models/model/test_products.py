"""Which library multiplies: float32 stays float32, the switch is set where it is wanted and put back, and a wrong request is refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from proxy_models import evaluate, products, train
from proxy_models.checkpoint import Checkpoint, save_checkpoints
from proxy_models.config import ProxyConfig
from proxy_models.model import PackedProxy
from proxy_models.products import SWITCH, fast_products, product_library

# Relative; float32 was off by at most 9e-7 in the shapes below, bfloat16 is by 2e-3 and more.
ROUNDING = 3e-6


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """The choice is made once per process."""
    before = setting()
    product_library.cache_clear()
    yield
    product_library.cache_clear()
    assert setting() == before


def setting() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_float32(product: Tensor, exact: Tensor) -> None:
    assert (product.double() - exact).abs().max() < ROUNDING * exact.abs().max()


@pytest.fixture(params=["mkl", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "onednn" and not products._accurate():
        pytest.skip("on this processor oneDNN would round to bfloat16")
    monkeypatch.setenv(SWITCH, request.param)
    return str(request.param)


def test_the_switch_is_set_within_and_put_back(library: str) -> None:
    with fast_products():
        assert setting() == {"mkl": "ieee", "onednn": "bf16"}[library]
        with fast_products():
            pass
        assert setting() == {"mkl": "ieee", "onednn": "bf16"}[library], "the inner one must leave it to the outer"
    assert setting() == "none"


def test_packs_in_several_threads_share_the_switch(library: str) -> None:
    """The first to come ends first; the other's products must not change library in the middle, nor the setting stay for ever."""
    first, second = ExitStack(), ExitStack()
    with ThreadPoolExecutor(1) as thread:
        first.enter_context(fast_products())
        thread.submit(second.enter_context, fast_products()).result()
        within = setting()
        first.close()
        assert setting() == within != "none"
        thread.submit(second.close).result()
    assert setting() == "none"


@pytest.mark.parametrize(("m", "k", "n"), [(1, 64, 512), (128, 64, 8192), (128, 8192, 64), (48, 384, 130), (9, 9, 9)])
def test_products_of_matrices_stay_float32_in_every_form_that_proxies_use(library: str, m: int, k: int, n: int) -> None:
    one, other, third = draw(m, k), draw(k, n), draw(m, n)
    exact = one.double() @ other.double()
    transposed = one.T.contiguous().T
    with fast_products():
        assert_float32(torch.mm(one, other, out=torch.empty(m, n)), exact)
        assert_float32(torch.mm(one, other.T.contiguous().T), exact)
        assert_float32(torch.full((m, n), torch.nan).addmm_(transposed, other, beta=0.0), exact)
        assert_float32(third.clone().addmm_(transposed, other), exact + third.double())


@pytest.mark.parametrize(("z", "m", "k", "n"), [(1, 64, 32, 64), (32, 128, 32, 128), (8, 1, 32, 129), (8, 48, 128, 256), (2, 3, 8, 5)])
def test_batched_products_stay_float32_in_every_form_that_proxies_use(library: str, z: int, m: int, k: int, n: int) -> None:
    one, other, third = draw(z, m, k), draw(z, k, n), draw(z, m, n)
    exact = torch.bmm(one.double(), other.double())
    transposed = one.mT.contiguous().mT

    def part(fill: float | Tensor) -> Tensor:
        """Rows within a larger tensor, as the queries of a block are."""
        rows = torch.full((z, m + 3, n), torch.nan)[:, 2:-1]
        return rows.copy_(torch.as_tensor(fill).expand_as(rows))

    with fast_products():
        assert_float32(torch.bmm(one, other.mT.contiguous().mT), exact)
        assert_float32(torch.bmm(one, other, out=part(torch.nan)), exact)
        assert_float32(part(torch.nan).baddbmm_(transposed, other, beta=0.0), exact)
        assert_float32(part(third).baddbmm_(transposed, other), exact + third.double())
        assert_float32(torch.baddbmm(third[..., :1], one, other, beta=-1.0), exact - third[..., :1].double())


def test_products_are_float32_whatever_torch_was_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library in the process may have asked for bfloat16 inside products, which processors with AMX then give."""
    monkeypatch.setenv(SWITCH, "mkl")
    before = setting()
    torch.set_float32_matmul_precision("medium")
    try:
        assert setting() == "bf16"
        with fast_products():
            assert setting() == "ieee"
        assert setting() == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_packs_train_and_weights_are_scored_within(
    library: str, tiny: ProxyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(train._Training, "run", lambda self: seen.append(setting()))
    train.train_pack(tiny, train.TrainSettings(64, 16, 32), [], [], {})
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: seen.append(setting()) or [[]])
    save_checkpoints({tmp_path / "weights": Checkpoint({f"model.{k}": v for k, v in PackedProxy(tiny, [0]).member_state(0).items()}, {})})
    evaluate.score_weights(tiny, tmp_path / "weights", [], 16)
    assert seen == [{"mkl": "ieee", "onednn": "bf16"}[library]] * 2


def test_the_switch_is_put_back_after_an_error(library: str) -> None:
    with pytest.raises(KeyError), fast_products():
        raise KeyError
    assert setting() == "none"


def test_a_library_that_rounds_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.bmm

    def rounded(one: Tensor, other: Tensor) -> Tensor:
        rounds = setting() == "bf16" and one.dtype == torch.float32
        return original(one.bfloat16(), other.bfloat16()).float() if rounds else original(one, other)

    monkeypatch.setattr(torch, "bmm", rounded)
    assert not products._accurate()


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
