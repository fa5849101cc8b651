"""Losses by fold against sums made row by row, and the ordinary scores that they add up to."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from proxy_models.config import ProxyConfig
from proxy_models.ensemble import Ensemble, token_losses
from proxy_models.evaluate import EvaluationSet, EvaluationSpec, evaluate
from proxy_models.folds import Folds, ensemble_fold_losses, fold_losses
from proxy_models.model import PackedProxy
from proxy_models.token_store import TokenStore, TokenWriter

WINDOW = 16


def model(tiny: ProxyConfig, members: int = 2) -> PackedProxy:
    """Weights large enough for losses to differ between tokens and members."""
    pack = PackedProxy(tiny, list(range(members)))
    with torch.no_grad():
        pack.embedding.mul_(4)
    return pack


def held_out(folder: Path, tiny: ProxyConfig, lengths: list[int], kind: str = "text", max_tokens: int | None = None) -> EvaluationSet:
    rng = np.random.default_rng(sum(lengths))
    path = folder / f"{kind}-{len(lengths)}-{sum(lengths)}"
    with TokenWriter(path, tiny.vocab_size, "tok") as writer:
        for length in lengths:
            fits = min(length, WINDOW - 1) if kind == "completion" else length
            writer.add([*rng.integers(1, tiny.vocab_size, fits).tolist(), 0], 3 * fits + 1, fits // 2 if kind == "completion" else 0)
        writer.close("content")
    return EvaluationSet(EvaluationSpec("set", path, kind, max_tokens), WINDOW)  # type: ignore[arg-type]


def reference(pack: PackedProxy, evaluation: EvaluationSet, folds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nats, tokens, bytes) by fold: every row alone; a row's fold is its document's number in order of appearance, modulo the folds."""
    rows, store = evaluation.rows("end"), TokenStore.open(evaluation.spec.path)
    numbers: dict[int, int] = {}
    nats, tokens, text_bytes = np.zeros((pack.members, folds)), np.zeros(folds, dtype=int), np.zeros(folds)
    for r in range(len(rows)):
        document, first, scored, last = (int(column[r]) for column in (rows.document, rows.first, rows.scored, rows.last))
        fold = numbers.setdefault(document, len(numbers)) % folds
        start = int(store.document_ends[document - 1]) if document else 0
        ids = [int(token) for token in store.tokens[start : int(store.document_ends[document])]]
        row = torch.tensor([([0, *ids])[first : last + 1]])
        losses = pack.token_losses(row.expand(pack.members, 1, -1))[:, 0, scored - first :].double().numpy()
        nats[:, fold] += losses.sum(axis=1)
        tokens[fold] += losses.shape[1]
        text_bytes[fold] += rows.text_bytes[r]
    return nats, tokens, text_bytes


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 50), min_size=3, max_size=8), st.sampled_from(["text", "completion"]), st.integers(2, 3), st.booleans())
def test_folds_are_those_of_the_slow_reference(
    tmp_path: Path, tiny: ProxyConfig, lengths: list[int], kind: str, folds: int, some: bool
) -> None:
    whole = held_out(tmp_path, tiny, lengths, kind)
    limit = int(whole.rows("end").lengths.sum()) - 1 if some else None
    evaluation = EvaluationSet(EvaluationSpec("set", whole.spec.path, whole.spec.kind, limit), WINDOW)
    assume(len(set(evaluation.rows("end").document.tolist())) >= folds)
    pack = model(tiny)
    found = fold_losses(pack, evaluation, Folds.of(evaluation, folds))
    nats, tokens, text_bytes = reference(pack, evaluation, folds)
    assert found.nats_KF == pytest.approx(nats, rel=1e-5)
    assert found.tokens_F.tolist() == tokens.tolist()
    assert found.text_bytes_F == pytest.approx(text_bytes)


@pytest.mark.parametrize("kind", ["text", "completion"])
def test_folds_add_up_to_the_score(tmp_path: Path, tiny: ProxyConfig, kind: str) -> None:
    evaluation = held_out(tmp_path, tiny, [20, 50, 7, 33, 90, 11, 4], kind, max_tokens=120 if kind == "text" else None)
    pack = model(tiny, 3)
    scores = fold_losses(pack, evaluation, Folds.of(evaluation, 3)).scores()
    for found, expected in zip(scores, (member[0] for member in evaluate(pack, [evaluation], "end")), strict=True):
        assert found.key == expected.key
        assert (found.loss_nats, found.bits_per_byte) == pytest.approx((expected.loss_nats, expected.bits_per_byte), rel=1e-9)


@pytest.mark.parametrize("kind", ["text", "completion"])
def test_an_ensembles_folds_are_its_components_weighted_token_by_token(tmp_path: Path, tiny: ProxyConfig, kind: str) -> None:
    evaluation = held_out(tmp_path, tiny, [20, 50, 7, 33, 90, 11, 4], kind)
    pack, folds, weights = model(tiny, 3), Folds.of(evaluation, 3), [[1.0, 0, 0], [0, 0, 1.0], [0.2, 0.3, 0.5]]
    ensemble = Ensemble(token_losses(pack, evaluation))
    found = ensemble_fold_losses(ensemble, weights, folds)
    assert found.nats_KF[:2] == pytest.approx(fold_losses(pack, evaluation, folds).nats_KF[[0, 2]], rel=1e-5)
    assert [score.loss_nats for score in found.scores()] == pytest.approx(ensemble.nats(weights), rel=1e-9)
    assert [score.bits_per_byte for score in found.scores()] == pytest.approx([score.bits_per_byte for score in ensemble.scores(weights)])
    assert found.bits() == pytest.approx(found.nats_KF / math.log(2))


def test_blocks_change_nothing_in_an_ensembles_folds(tmp_path: Path, tiny: ProxyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = held_out(tmp_path, tiny, [20, 50, 7, 33])
    folds, ensemble = Folds.of(evaluation, 4), Ensemble(token_losses(model(tiny), evaluation))
    whole = ensemble_fold_losses(ensemble, [[0.4, 0.6]], folds)
    monkeypatch.setattr("proxy_models.ensemble.LARGEST_PRODUCT", 7)
    assert ensemble_fold_losses(ensemble, [[0.4, 0.6]], folds).nats_KF == pytest.approx(whole.nats_KF, rel=1e-12)


def test_a_document_stays_in_one_fold_and_folds_are_even(tmp_path: Path, tiny: ProxyConfig) -> None:
    evaluation = held_out(tmp_path, tiny, [40] * 25)
    folds, rows = Folds.of(evaluation, 10), evaluation.rows("end")
    for document in range(25):
        assert len(set(folds.row_R[rows.document == document].tolist())) == 1
    assert {len(set(rows.document[folds.row_R == fold].tolist())) for fold in range(10)} == {2, 3}


def test_with_fewer_documents_than_folds_rows_are_dealt(tmp_path: Path, tiny: ProxyConfig) -> None:
    folds = Folds.of(held_out(tmp_path, tiny, [200, 100]), 5)
    assert folds.row_R.tolist() == [r % 5 for r in range(len(folds.row_R))]


def test_a_diverged_member_leaves_the_others_alone(tmp_path: Path, tiny: ProxyConfig) -> None:
    evaluation, pack = held_out(tmp_path, tiny, [20, 50, 7, 33]), model(tiny)
    folds = Folds.of(evaluation, 2)
    alone = fold_losses(pack, evaluation, folds).nats_KF[1]
    with torch.no_grad():
        pack.embedding[0] = math.nan
    found = fold_losses(pack, evaluation, folds).nats_KF
    assert np.isnan(found[0]).all()
    assert np.array_equal(found[1], alone)


def test_mistakes_are_named(tmp_path: Path, tiny: ProxyConfig) -> None:
    evaluation = held_out(tmp_path, tiny, [20, 50])
    with pytest.raises(ValueError, match="into 1 folds"):
        Folds.of(evaluation, 1)
    with pytest.raises(ValueError, match="into 99 folds"):
        Folds.of(evaluation, 99)
    other = EvaluationSet(EvaluationSpec("other", evaluation.spec.path, "text", None), WINDOW)
    with pytest.raises(ValueError, match="'set' and the losses of 'other'"):
        fold_losses(model(tiny), other, Folds.of(evaluation, 2))
    with pytest.raises(ValueError, match="each token needs one"):
        Ensemble(token_losses(model(tiny), evaluation)).fold_nats([[0.5, 0.5]], np.zeros(3, dtype=np.int64), 2)
