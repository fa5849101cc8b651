"""Evaluation against a brute-force reference: one row at a time, laid out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy_models.checkpoint import Checkpoint, DamagedCheckpoint, save_checkpoints, with_prefix
from proxy_models.config import ProxyConfig, proxy_config
from proxy_models.evaluate import BATCH_TOKENS, PADDING_TOKENS, EvaluationSet, EvaluationSpec, evaluate, score_weights, with_curve_rows
from proxy_models.model import PackedProxy
from proxy_models.products import fast_products
from proxy_models.token_store import TokenWriter

END = 0
VOCAB = 40
CONFIG = ProxyConfig("test", VOCAB, 16, 1, 2, n_experts=4, top_k=2, n_shared_experts=1, d_expert=8)

Document = tuple[list[int], int, int]  # ids with their end token, bytes, scored_from


def write(path: Path, documents: list[Document], content_hash: str = "content") -> Path:
    with TokenWriter(path, VOCAB, "tok") as writer:
        for ids, text_bytes, scored_from in documents:
            writer.add(ids, text_bytes, scored_from)
        writer.close(content_hash)
    return path


def model(members: int = 2) -> PackedProxy:
    """Weights large enough for predictions to differ between tokens and members."""
    pack = PackedProxy(CONFIG, list(range(members)))
    with torch.no_grad():
        pack.embedding.mul_(4)
    return pack


def documents(lengths: list[int], completion: bool, seed: int = 0) -> list[Document]:
    generator = np.random.default_rng(seed)
    result: list[Document] = []
    for length in lengths:
        ids = [*generator.integers(1, VOCAB, length).tolist(), END]
        result.append((ids, int(generator.integers(1, 9)) * max(length, 1), int(generator.integers(0, length + 1)) if completion else 0))
    return result


def reference(pack: PackedProxy, content: list[Document], window: int, kind: str) -> list[tuple[float, float]]:
    """(loss in nats, bits per byte) per member: every token predicted alone, from the context that it should see."""
    nats, tokens, text_bytes = np.zeros(pack.members), 0, 0.0
    for ids, document_bytes, scored_from in content:
        sequence = [END, *ids]
        text_bytes += document_bytes
        for position in range(scored_from, len(ids)):  # predicts ids[position] = sequence[position + 1]
            first = position // window * window if kind == "text" else max(0, len(ids) - window)
            row = torch.tensor(sequence[first : position + 2])
            losses_KBT = pack.token_losses(row.expand(pack.members, 1, -1))
            nats += losses_KBT[:, 0, -1].double().numpy()
            tokens += 1
    return [(total / tokens, total / math.log(2) / text_bytes) for total in nats.tolist()]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["text", "completion"]),
)
def test_equal_to_the_reference(tmp_path: Path, lengths: list[int], seed: int, kind: str) -> None:
    content = documents(lengths, kind == "completion", seed)
    window = 6 if kind == "text" else max(len(ids) - scored for ids, _, scored in content) + seed % 3
    path = write(tmp_path / "set", content)
    pack = model()
    scores = evaluate(pack, [EvaluationSet(EvaluationSpec("k", path, kind, None), window)], "end")
    for member, expected in zip(scores, reference(pack, content, window, kind), strict=True):
        assert member[0].key == "k"
        assert (member[0].loss_nats, member[0].bits_per_byte) == pytest.approx(expected, rel=2e-5)


def test_many_batches_equal_the_reference(tmp_path: Path) -> None:
    content = documents([30] * 200, completion=False)
    assert sum(len(ids) for ids, _, _ in content) > BATCH_TOKENS
    path = write(tmp_path / "set", content)
    pack = model(1)
    (scores,) = evaluate(pack, [EvaluationSet(EvaluationSpec("k", path, "text", None), 31)], "end")
    rows = torch.tensor([[END, *ids] for ids, _, _ in content])
    mean = pack.token_losses(rows[None]).double().mean().item()
    assert scores[0].loss_nats == pytest.approx(mean, rel=1e-5)


def test_little_of_what_is_fed_is_padding(tmp_path: Path) -> None:
    """Padding costs as much as scored tokens; the budget of an evaluation counts only these."""
    lengths = np.random.default_rng(0).integers(1, 200, 60).tolist()
    path = write(tmp_path / "set", documents(lengths, completion=True))
    evaluation = EvaluationSet(EvaluationSpec("k", path, "completion", None), 256)
    batches = [tokens_BS.shape for tokens_BS, _ in evaluation.batches("end")]
    assert sum(rows for rows, _ in batches) == len(lengths)
    fed = sum(rows * (width - 1) for rows, width in batches)
    scored = int(evaluation.rows("end").lengths.sum())
    assert fed - scored <= PADDING_TOKENS * len(batches) < fed / 4
    assert len(batches) < len(lengths) / 2


def row_keys(evaluation: EvaluationSet, which: str) -> list[tuple[int, int]]:
    rows = evaluation.rows(which)  # type: ignore[arg-type]
    return list(zip(rows.document.tolist(), rows.first.tolist(), strict=True))


def test_subsets_are_nested_capped_and_fixed_by_content(tmp_path: Path) -> None:
    content = documents([20] * 30, completion=False)
    path = write(tmp_path / "set", content)

    def subset(max_tokens: int | None, curve_tokens: int | None, which: str, file: Path = path) -> list[tuple[int, int]]:
        return row_keys(EvaluationSet(EvaluationSpec("k", file, "text", max_tokens, curve_tokens), 8), which)

    everything = subset(None, None, "end")
    assert len(everything) == 30 * 3
    assert subset(100, 40, "curve") == everything[: len(subset(100, 40, "curve"))]
    assert subset(100, 40, "end") == everything[: len(subset(100, 40, "end"))]
    assert subset(100, None, "curve") == subset(100, None, "end")
    assert len(subset(1, None, "end")) == 1
    other = write(tmp_path / "other", content, "another content")
    assert subset(None, None, "end", other) != everything
    assert sorted(subset(None, None, "end", other)) == sorted(everything)
    rows = EvaluationSet(EvaluationSpec("k", path, "text", 100), 8).rows("end")
    assert 100 - 8 < rows.lengths.sum() <= 100


@pytest.mark.parametrize("kind", ["text", "completion"])
@pytest.mark.parametrize("lengths", [[20, 3, 0, 14, 9, 30, 5, 5] * 3, [1, 0, 2, 1]], ids=["rows", "short rows"])
def test_the_end_is_scored_on_the_rows_of_the_curve_in_the_same_pass(tmp_path: Path, kind: str, lengths: list[int]) -> None:
    """As if these rows had been scored alone; and the end on all rows is what it is without."""
    path = write(tmp_path / "set", documents(lengths, kind == "completion"))
    spec = EvaluationSpec("all", path, kind, None, 2 * sum(lengths) // 5, "early")  # type: ignore[arg-type]
    window = 8 if kind == "text" else 40
    evaluation, pack = EvaluationSet(spec, window), model()
    assert 0 < len(evaluation.rows("curve")) < len(evaluation.rows("end"))
    ends, alone = evaluate(pack, [evaluation], "end"), evaluate(pack, [evaluation], "curve")
    plain = evaluate(pack, [EvaluationSet(replace(spec, curve_key=None), window)], "end")
    for (end,), (curve,), (without,) in zip(ends, alone, plain, strict=True):
        assert end.on_curve is not None
        assert end.on_curve.key == "early"
        assert (end.on_curve.loss_nats, end.on_curve.bits_per_byte) == pytest.approx((curve.loss_nats, curve.bits_per_byte), rel=1e-5)
        assert abs(end.on_curve.loss_nats - end.loss_nats) > 1e-4, "other rows, another loss"
        assert replace(end, on_curve=None) == without
        assert curve.on_curve is None
        assert [one.key for one in with_curve_rows([end, curve])] == ["all", "early", "all"]


def test_bytes_of_a_text_add_up_and_follow_its_tokens(tmp_path: Path) -> None:
    content = documents([20, 3, 7], completion=False)
    path = write(tmp_path / "set", content)
    rows = EvaluationSet(EvaluationSpec("k", path, "text", None), 8).rows("end")
    for index, (_, text_bytes, _) in enumerate(content):
        mine = rows.document == index
        assert rows.text_bytes[mine].sum() == pytest.approx(text_bytes)
    long = rows.take(np.flatnonzero(rows.document == 0))
    # 20 tokens of text and the end token in rows of 8, 8 and 5: the end token stands for no bytes.
    by_first = dict(zip(long.first.tolist(), long.text_bytes.tolist(), strict=True))
    assert by_first == pytest.approx({0: content[0][1] * 8 / 20, 8: content[0][1] * 8 / 20, 16: content[0][1] * 4 / 20})


@pytest.mark.parametrize("kind", ["text", "completion"])
def test_no_row_holds_tokens_of_another_document(tmp_path: Path, kind: str) -> None:
    """Each document consists of its own token only; the end token is the one they share."""
    content: list[Document] = [([index + 1] * 9 + [END], 9, 5 if kind == "completion" else 0) for index in range(20)]
    path = write(tmp_path / "set", content)
    scored = 0
    for tokens_BS, counts_BT in EvaluationSet(EvaluationSpec("k", path, kind, None), 7).batches("end"):  # type: ignore[arg-type]
        for tokens, counts in zip(tokens_BS, counts_BT, strict=True):
            assert len(set(tokens.tolist()) - {END}) <= 1
            scored += int(counts.sum())
    assert scored == 20 * (5 if kind == "completion" else 10)


def test_prompts_are_cut_on_the_left_and_completions_never(tmp_path: Path) -> None:
    path = write(tmp_path / "set", [([*range(1, 13), END], 5, 9)])
    ((tokens_BS, counts_BT),) = EvaluationSet(EvaluationSpec("k", path, "completion", None), 6).batches("end")
    assert tokens_BS.tolist() == [[7, 8, 9, 10, 11, 12, END]]
    assert counts_BT.tolist() == [[False, False, True, True, True, True]]
    with pytest.raises(ValueError, match="has 4 tokens, the window 3"):
        EvaluationSet(EvaluationSpec("k", path, "completion", None), 3)


def test_wrong_sets_are_refused(tmp_path: Path) -> None:
    cases = [
        ("no documents", "text", []),
        ("plain text", "text", [([1, 2, END], 3, 1)]),
        ("no bytes", "text", [([END], 0, 0)]),
        ("'text' or 'completion'", "pairs", [([1, END], 1, 0)]),
    ]
    for index, (match, kind, content) in enumerate(cases):
        path = write(tmp_path / str(index), content)
        with pytest.raises(ValueError, match=match):
            EvaluationSet(EvaluationSpec("k", path, kind, None), 8)  # type: ignore[arg-type]


def test_a_member_with_nan_leaves_the_others_alone(tmp_path: Path) -> None:
    evaluations = [EvaluationSet(EvaluationSpec("k", write(tmp_path / "set", documents([9, 4], completion=False)), "text", None), 8)]
    pack = model(3)
    healthy = evaluate(pack, evaluations, "end")
    with torch.no_grad():
        pack.embedding[1] = float("nan")
    scores = evaluate(pack, evaluations, "end")
    assert math.isnan(scores[1][0].loss_nats)
    assert (scores[0], scores[2]) == (healthy[0], healthy[2])


def test_weights_are_scored_as_the_member_that_wrote_them(tmp_path: Path) -> None:
    spec = EvaluationSpec("k", write(tmp_path / "set", documents([15, 4], completion=False)), "text", None)
    pack = model(3)
    weights = tmp_path / "weights.safetensors"
    save_checkpoints({weights: Checkpoint(with_prefix("model", pack.member_state(1)), {"spec": "x"})})
    (score,) = score_weights(CONFIG, weights, [spec], 8)
    expected = evaluate(pack, [EvaluationSet(spec, 8)], "end")[1][0]
    # A pack of one may round differently.
    assert (score.loss_nats, score.bits_per_byte) == pytest.approx((expected.loss_nats, expected.bits_per_byte), rel=1e-5)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint):
        score_weights(CONFIG, weights, [spec], 8)


@fast_products()
def test_losses_on_the_shortest_rows_do_not_depend_on_how_many_are_scored(tmp_path: Path) -> None:
    """Products of a few numbers are where libraries change over to other kernels, by how many there are."""
    config = proxy_config("nano", 512)
    pack = PackedProxy(config, range(9))
    for length in (1, 3, 8, 11):
        path = write(tmp_path / str(length), [([*range(1, length), END], 3 * length, 0)])
        sets = [EvaluationSet(EvaluationSpec("k", path, "text", None), 64)]
        together = evaluate(pack, sets, "end")
        assert [evaluate(pack.select([k]), sets, "end")[0] for k in (0, 8)] == [together[0], together[8]], length
