"""How pairs are laid out in windows: nothing lost, nothing split, no prompt scored, and the same rows as when they are scored held out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_models.evaluate import EvaluationSet, EvaluationSpec
from proxy_models.sampler import DomainStream, MemberSampler, next_batch
from proxy_models.token_store import TokenStore, TokenWriter
from proxy_models.windows import PairWindows, TextWindows, best_fit, windows_of

WINDOW = 12
VOCAB = 1 << 20
END = 0

Pairs = list[tuple[int, int]]  # tokens of the prompt; of the completion, the end token included

pairs_of_tokens = st.lists(st.tuples(st.integers(1, 30), st.integers(2, WINDOW)), min_size=1, max_size=40)


def write_pairs(path: Path, pairs: Pairs, name: str = "pairs") -> list[list[int]]:
    """Pairs whose tokens all differ, but for the end token; returns their ids."""
    content, fresh = [], 1
    with TokenWriter(path, VOCAB, "tok") as writer:
        for prompt, completion in pairs:
            ids = [*range(fresh, fresh + prompt + completion - 1), END]
            fresh += len(ids)
            writer.add(ids, completion, scored_from=prompt)
            content.append(ids)
        writer.close(name)
    return content


def write_text(path: Path, tokens: int) -> Path:
    with TokenWriter(path, VOCAB, "tok") as writer:
        writer.add(np.arange(1, tokens + 1), tokens)
        writer.close(path.name)
    return path


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, WINDOW), max_size=60), seed=st.integers(0, 9))
def test_best_fit_leaves_no_two_windows_that_would_fit_in_one(sizes: list[int], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(sizes))
    window_P = best_fit(sizes, WINDOW, order)
    filled = np.bincount(window_P, weights=sizes, minlength=0)
    assert len(window_P) == len(sizes)
    assert filled.sum() == sum(sizes)
    assert not len(filled) or (filled.min() > 0 and filled.max() <= WINDOW)
    smallest = np.sort(filled)[:2]
    assert len(smallest) < 2 or smallest.sum() > WINDOW


def test_best_fit_fills_what_is_left() -> None:
    assert best_fit([3, 9, 4, 8, 12], 12, np.arange(5)).tolist() == [1, 1, 2, 2, 0]


@settings(max_examples=150, deadline=None)
@given(pairs=pairs_of_tokens)
def test_every_completion_is_scored_once_and_no_prompt_ever(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs"
    content = write_pairs(path, pairs)
    windows = PairWindows(TokenStore.open(path), WINDOW)
    index = np.arange(windows.count)
    tokens_NS, scored_NT = windows.read(index)
    assert tokens_NS.shape == (windows.count, WINDOW + 1)
    scored = tokens_NS[:, 1:][scored_NT]
    wanted = [ids[prompt:] for ids, (prompt, _) in zip(content, pairs, strict=True)]
    assert sorted(scored.tolist()) == sorted(token for ids in wanted for token in ids)  # end tokens as often as there are pairs
    seen = ["," + ",".join(map(str, row)) + "," for row in tokens_NS.tolist()]
    for ids, (prompt, completion) in zip(content, pairs, strict=True):
        # Whole, in one window, and no token of it anywhere else; a prompt that does not fit has lost its beginning.
        kept = ids[max(0, len(ids) - WINDOW - 1) :]
        assert sum(f",{','.join(map(str, kept))}," in row for row in seen) == 1
        assert len(kept) == min(len(ids), WINDOW + 1) > completion - 1
        assert (tokens_NS == ids[-2]).sum() == 1
        assert prompt >= 1
    # What is predicted is predicted from the right place: right after the end token, or from the prompt that is left.
    kept_tokens = {token for ids in content for token in ids[max(0, len(ids) - WINDOW - 1) :]}
    assert set(tokens_NS.flatten().tolist()) == kept_tokens | {END}
    assert windows.scored(index) == scored_NT.sum() == sum(completion for _, completion in pairs)
    assert windows.padding(index) == windows.count * WINDOW - sum(min(len(ids), WINDOW) for ids in content)
    assert windows.scored(index[::-2]) == scored_NT[::-2].sum()


def test_a_layout_by_hand(tmp_path: Path) -> None:
    """Longest first into the fullest window with room; in a window pairs stand in the order of the file, after an end token, filled with end tokens."""
    write_pairs(tmp_path / "pairs", [(2, 2), (4, 3), (1, 4), (15, 3)])
    tokens_NS, scored_NT = PairWindows(TokenStore.open(tmp_path / "pairs"), WINDOW).read(np.arange(2))
    assert tokens_NS.tolist() == [
        # 18 tokens, 13 of them here; 12 predicted, the last 3 scored
        [*range(22, 34), 0],
        # 7, and 5 more that just fit
        [0, 5, 6, 7, 8, 9, 10, 0, 12, 13, 14, 15, 0],
    ]
    assert np.flatnonzero(scored_NT[0]).tolist() == [9, 10, 11]
    assert np.flatnonzero(scored_NT[1]).tolist() == [4, 5, 6, 8, 9, 10, 11]
    tokens_NS, scored_NT = PairWindows(TokenStore.open(tmp_path / "pairs"), WINDOW).read(np.array([2]))
    assert tokens_NS.tolist() == [[0, 1, 2, 3, 0, *[0] * 8]]
    assert np.flatnonzero(scored_NT[0]).tolist() == [2, 3]


def test_a_pair_that_is_cut_is_fed_as_when_it_is_scored(tmp_path: Path) -> None:
    for prompt in (8, 9, 10, 11, 30):  # 9: all predicted from the end token; 10: from the first token
        path = tmp_path / str(prompt)
        write_pairs(path, [(prompt, 3)])
        tokens_NS, scored_NT = PairWindows(TokenStore.open(path), WINDOW).read(np.array([0]))
        fed_BS, counts_BT = next(EvaluationSet(EvaluationSpec("k", path, "completion", None), WINDOW).batches("end"))
        length = fed_BS.shape[1]
        assert tokens_NS[:, :length].tolist() == fed_BS.tolist()
        assert scored_NT[:, : length - 1].tolist() == counts_BT.tolist()
        assert tokens_NS[0, length:].tolist() == [END] * (WINDOW + 1 - length)
        assert not scored_NT[0, length - 1 :].any()


def test_a_completion_that_fits_no_window_is_an_error(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", [(2, 2), (1, WINDOW + 1)])
    with pytest.raises(ValueError, match=r"Completion 1 of .* has 13 tokens, the window 12; completions are never cut"):
        windows_of(tmp_path / "pairs", WINDOW)


def test_a_file_tells_by_itself_what_it_holds(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", [(2, 2)])
    assert isinstance(windows_of(tmp_path / "pairs", WINDOW), PairWindows)
    text = windows_of(write_text(tmp_path / "text", 40), WINDOW)
    assert isinstance(text, TextWindows)
    assert (text.count, text.scored(np.arange(3)), text.padding(np.arange(3))) == (3, 36, 0)
    assert windows_of(write_text(tmp_path / "short", 5), WINDOW).count == 0


@pytest.fixture
def streams(tmp_path: Path) -> tuple[DomainStream, DomainStream]:
    """Pairs, and text whose ids do not meet theirs."""
    generator = np.random.default_rng(0)
    write_pairs(tmp_path / "pairs", [(int(prompt), int(completion)) for prompt, completion in generator.integers(2, 10, (60, 2))])
    with TokenWriter(tmp_path / "text", VOCAB, "tok") as writer:
        writer.add(np.arange(10_000, 10_600), 600)
        writer.close("text")
    return DomainStream("p", tmp_path / "pairs", 10**6), DomainStream("t", tmp_path / "text", 10**6)


def test_an_epoch_scores_every_completion_once(streams: tuple[DomainStream, DomainStream]) -> None:
    pairs = windows_of(streams[0].path, WINDOW)
    sampler = MemberSampler(5, streams[:1], [[1.0]], [1.0], 2 * pairs.count, WINDOW)
    epochs = [sampler.next_batch(pairs.count) for _ in range(2)]
    scored = [np.sort(one.tokens_KBS[0, :, 1:][one.scored_KBT[0]]) for one in epochs]  # type: ignore[index]
    assert np.array_equal(scored[0], scored[1])
    assert len(scored[0]) == pairs.scored(np.arange(pairs.count))
    assert not np.array_equal(epochs[0].tokens_KBS, epochs[1].tokens_KBS)  # in another order
    assert sampler.epochs() == {"p": 2.0}
    assert sampler.scored_tokens() == {"p": 2 * len(scored[0])}


def test_pairs_and_text_follow_their_shares_and_say_what_is_scored(streams: tuple[DomainStream, DomainStream]) -> None:
    sampler = MemberSampler(1, streams, [[0.3, 0.7]], [1.0], 40, WINDOW)
    batch = sampler.next_batch(30)
    assert batch.scored_KBT is not None
    is_text = (batch.tokens_KBS[0] >= 10_000).any(axis=1)
    assert is_text.sum() == 21
    assert sampler.realized() == {"p": (0.3,), "t": (0.7,)}
    assert batch.scored_KBT[0][is_text].all()
    in_pairs = batch.scored_KBT[0][~is_text]
    assert in_pairs.any(axis=1).all()
    assert not in_pairs.all(axis=1).any()
    assert sampler.scored_tokens() == {"p": in_pairs.sum(), "t": 21 * WINDOW}
    assert 0 <= sampler.padding_tokens()["p"] < (~in_pairs).sum()
    assert sampler.padding_tokens()["t"] == 0


def test_fewer_unique_windows_of_pairs_are_among_more(streams: tuple[DomainStream, DomainStream]) -> None:
    def seen(windows: int) -> set[tuple[int, ...]]:
        stream = DomainStream("p", streams[0].path, windows * WINDOW)
        rows = MemberSampler(3, [stream], [[1.0]], [1.0], windows, WINDOW).next_windows(windows)
        return {tuple(row) for row in rows.tolist()}

    count = windows_of(streams[0].path, WINDOW).count
    parts = [seen(windows) for windows in (5, 11, count)]
    assert parts[0] < parts[1] < parts[2]
    assert [len(part) for part in parts] == [5, 11, count]


@settings(max_examples=25, deadline=None)
@given(taken=st.integers(0, 50), block=st.integers(1, 30))
def test_it_goes_on_where_it_was(taken: int, block: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("domains")
    write_pairs(folder / "pairs", [(1 + k % 7, 2 + k % 5) for k in range(40)])
    domains = DomainStream("p", folder / "pairs", 10**6), DomainStream("t", write_text(folder / "text", 300), 10**6)
    phases, fractions = [[0.5, 0.5], [0.9, 0.1]], [0.5, 0.5]
    whole, before, after = (MemberSampler(2, domains, phases, fractions, 60, WINDOW) for _ in range(3))
    expected = whole.next_batch(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxy_models.sampler.BLOCK_TOKENS", block * WINDOW)
        first = before.next_batch(taken)
        after.load_state(before.state())
        rest = after.next_batch(60 - taken)
    assert np.array_equal(np.concatenate([first.tokens_KBS, rest.tokens_KBS], axis=1), expected.tokens_KBS)
    assert np.array_equal(np.concatenate([first.scored_KBT, rest.scored_KBT], axis=1), expected.scored_KBT)  # type: ignore[arg-type]
    assert after.scored_tokens() == whole.scored_tokens()
    assert after.padding_tokens() == whole.padding_tokens()
    assert sum(after.scored_tokens().values()) == expected.scored_KBT.sum()  # type: ignore[union-attr]


def test_in_a_pack_each_is_told_its_own(streams: tuple[DomainStream, DomainStream]) -> None:
    weights = ([[0.5, 0.5]], [[0.0, 1.0]], [[1.0, 0.0]])
    alone = [MemberSampler(k, streams, one, [1.0], 20, WINDOW).next_batch(20) for k, one in enumerate(weights)]
    together = next_batch([MemberSampler(k, streams, one, [1.0], 20, WINDOW) for k, one in enumerate(weights)], 20)
    assert alone[1].scored_KBT is None  # nothing but text
    assert together.scored_KBT is not None
    assert together.scored_KBT[1].all()
    for k in range(3):
        assert np.array_equal(together.tokens_KBS[k], alone[k].tokens_KBS[0])
        if k != 1:
            assert np.array_equal(together.scored_KBT[k], alone[k].scored_KBT[0])  # type: ignore[index]
