"""Ensembles of components against brute force, their algebra, and what is kept of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from proxy_models import ensemble
from proxy_models.config import ProxyConfig
from proxy_models.ensemble import Ensemble, TokenLosses, load_token_losses, save_token_losses, side_by_side, token_losses
from proxy_models.evaluate import EvaluationSet, EvaluationSpec, evaluate
from proxy_models.model import PackedProxy
from proxy_models.token_store import TokenWriter

WEIGHTS = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]])


def made(tiny: ProxyConfig, members: int = 3) -> PackedProxy:
    """Components that differ clearly."""
    model = PackedProxy(tiny, list(range(members)))
    for member in range(members):
        model.load_member_state(member, {name: value * 6 for name, value in model.member_state(member).items()})
    return model


@pytest.fixture(params=["text", "completion"])
def held_out(request: pytest.FixtureRequest, tmp_path: Path, tiny: ProxyConfig) -> EvaluationSet:
    generator = np.random.default_rng(1)
    with TokenWriter(tmp_path / "set", tiny.vocab_size, "tok") as writer:
        for length in (20, 50, 7, 33):
            fits = min(length, 30) if request.param == "completion" else length
            prompt = fits // 3 if request.param == "completion" else 0
            writer.add([*generator.integers(1, tiny.vocab_size, fits).tolist(), 0], 3 * fits, prompt)
        writer.close("set")
    return EvaluationSet(EvaluationSpec("set", tmp_path / "set", request.param, None), 32)


def losses(values: np.ndarray, text_bytes: float = 7.0) -> TokenLosses:
    return TokenLosses("set", values.astype(np.float32), text_bytes)


def test_the_loss_is_that_of_the_probabilities_weighted_token_by_token(tiny: ProxyConfig, held_out: EvaluationSet) -> None:
    """Brute force: a softmax of each component over the whole vocabulary, averaged, and the logarithm of the true token's share."""
    model = made(tiny)
    total, count = np.zeros(len(WEIGHTS)), 0
    for tokens_BS, counts_BT in held_out.batches("end"):
        tokens = torch.from_numpy(tokens_BS)
        with torch.no_grad():
            logits = model.logits(tokens[None, :, :-1].expand(3, -1, -1)).double()
        chosen = torch.softmax(logits, dim=-1).gather(-1, tokens[None, :, 1:, None].expand(3, -1, -1, 1))[..., 0].numpy()
        total -= np.log(np.einsum("mk,kbt->mbt", WEIGHTS, chosen))[:, counts_BT].sum(axis=1)
        count += int(counts_BT.sum())
    assert Ensemble(token_losses(model, held_out)).nats(WEIGHTS) == pytest.approx(total / count, rel=1e-5)


def test_alone_and_among_copies_a_component_scores_as_it_does(tiny: ProxyConfig, held_out: EvaluationSet) -> None:
    model = made(tiny)
    kept = token_losses(model, held_out)
    expected = [scores[0] for scores in evaluate(model, [held_out], "end")]
    alone = Ensemble(kept).scores(np.eye(3))
    copies = Ensemble(side_by_side([losses_of(kept, 1)] * 4)).scores([[0.1, 0.2, 0.3, 0.4]])
    for one, other in [*zip(alone, expected, strict=True), (copies[0], expected[1])]:
        assert (one.loss_nats, one.bits_per_byte) == pytest.approx((other.loss_nats, other.bits_per_byte), rel=1e-6)
    assert len({round(score.loss_nats, 3) for score in alone}) == 3, "the components differ, or nothing is tested"


def losses_of(kept: TokenLosses, component: int) -> TokenLosses:
    return TokenLosses(kept.key, kept.losses_KT[component : component + 1], kept.text_bytes)


tables = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.floats(0, 60, width=32))


def mixtures(draw: st.DrawFn, components: int, count: int) -> np.ndarray:
    raw = np.array(draw(st.lists(st.lists(st.floats(0.01, 1), min_size=components, max_size=components), min_size=count, max_size=count)))
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_convex_between_the_components_and_sloped_as_it_says(data: st.DataObject) -> None:
    table = data.draw(tables)
    found = Ensemble(losses(table))
    one, other = data.draw(st.composite(mixtures)(len(table), 2))
    values = found.nats([one, other, (one + other) / 2])
    assert values[2] <= values[:2].mean() + 1e-9
    assert values[0] <= table.astype(np.float64).mean(axis=1) @ one + 1e-9, (
        "no worse than the weighted mean of the components' losses (Jensen)"
    )
    # A small step between two mixtures: the slopes are those of the whole space, used along the simplex.
    step = 1e-4 * (other - one)
    rise = found.nats([one + step, one - step])
    assert (rise[0] - rise[1]) / 2 == pytest.approx(float(found.slopes([one])[0] @ step), rel=1e-3, abs=1e-10)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Ensemble(losses(np.random.default_rng(0).uniform(0, 9, (3, 101))))
    whole, slopes = found.nats(WEIGHTS), found.slopes(WEIGHTS)
    monkeypatch.setattr(ensemble, "LARGEST_PRODUCT", 28)
    assert found.nats(WEIGHTS) == pytest.approx(whole, rel=1e-12)
    assert found.slopes(WEIGHTS) == pytest.approx(slopes, rel=1e-12)


def test_a_token_that_only_a_component_of_small_weight_knows_is_not_lost() -> None:
    found = Ensemble(losses(np.array([[1.0], [600.0]])))
    assert found.nats([[0.0, 1.0]])[0] == pytest.approx(600.0)
    assert found.nats([[1e-12, 1 - 1e-12]])[0] == pytest.approx(1.0 - np.log(1e-12))


def test_kept_losses_come_back_and_others_do_not(tmp_path: Path) -> None:
    kept = losses(np.random.default_rng(0).uniform(0, 9, (2, 5)))
    path = tmp_path / "losses.safetensors"
    save_token_losses(path, [kept], "these components")
    found = load_token_losses(path, "these components")
    assert found is not None
    assert (found["set"].key, found["set"].text_bytes) == ("set", 7.0)
    assert np.array_equal(found["set"].losses_KT, kept.losses_KT)
    assert load_token_losses(path, "others") is None
    path.write_bytes(path.read_bytes()[:-1])
    assert load_token_losses(path, "these components") is None
    assert load_token_losses(tmp_path / "none", "these components") is None


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: losses(np.zeros((2, 0))), "shape"),
        (lambda: losses(np.array([[1.0], [np.inf]])), "component 1"),
        (lambda: losses(np.ones((1, 1)), 0.0), "bytes"),
        (lambda: side_by_side([]), "empty"),
        (lambda: side_by_side([losses(np.ones((1, 2))), losses(np.ones((1, 3)))]), "same tokens"),
        (lambda: Ensemble(losses(np.ones((2, 3)))).nats([[1.0]]), r"\(mixtures, 2\)"),
        (lambda: Ensemble(losses(np.ones((2, 3)))).nats([[0.5, 0.6]]), "sum to"),
    ],
)
def test_mistakes_are_named(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()  # type: ignore[operator]
