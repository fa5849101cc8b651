"""The sampler: shares followed to the window, and the same tokens whatever happens around a member."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_models import sampler as sampler_module
from proxy_models.deficit_rule import DeficitRule, deal
from proxy_models.hashed_order import hashed_order
from proxy_models.sampler import DomainStream, MemberSampler, next_windows, phase_windows
from proxy_models.token_store import TokenStore, TokenWriter

WINDOW = 4
GOLDEN_ORDER = [6, 4, 11, 5, 8, 0, 7, 2, 9, 1, 10, 3]


def row(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]


weight_rows = (
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=1, max_size=9).filter(lambda values: sum(values) > 0).map(row)
)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    domains, phases = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    cell = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))
    rows = draw(st.lists(st.lists(cell, min_size=domains, max_size=domains).filter(lambda v: sum(v) > 0), min_size=phases, max_size=phases))
    return np.array([row(values) for values in rows]), draw(st.lists(st.integers(1, 40), min_size=phases, max_size=phases))


@settings(max_examples=100, deadline=None)
@given(weights=weight_rows, windows=st.integers(1, 300))
def test_constant_weights_are_followed_within_one_window_at_every_prefix(weights: list[float], windows: int) -> None:
    shares = np.array(weights)
    rule = DeficitRule(shares[None], [windows])
    active = int((shares > 0).sum())
    bound = 1 - 1 / (2 * active - 2) if active > 1 else 0.0
    for drawn in range(1, windows + 1):
        rule.draw()
        assert np.abs(rule.counts[0] - drawn * shares).max() <= bound + 1e-6


@settings(max_examples=150, deadline=None)
@given(schedule=schedules())
def test_moving_weights_are_followed_within_one_window_per_phase(schedule: tuple[np.ndarray, list[int]]) -> None:
    weights, windows = schedule
    rule = DeficitRule(weights, windows)
    owed = np.zeros(weights.shape[1])
    for phase, length in enumerate(windows):
        for _ in range(length):
            chosen = rule.draw()
            assert weights[phase, chosen] > 0
            owed += weights[phase]
            assert np.abs(rule.counts.sum(axis=0) - owed).max() < phase + 1
        assert rule.counts[phase].sum() == length


@settings(max_examples=50, deadline=None)
@given(weights=weight_rows, data=st.data())
def test_the_order_of_domains_does_not_matter(weights: list[float], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nor do domains of zero weight: they are not even opened."""
    folder = shared_domains(tmp_path_factory)
    streams = [DomainStream(f"key{i}", folder / str(i), 80) for i in range(len(weights))]
    order = data.draw(st.permutations(range(len(weights))))
    used = [index for index in order if weights[index] > 0]
    absent = DomainStream("absent", folder / "absent", 80)
    plain = MemberSampler(3, streams, [weights], [1.0], 60, WINDOW)
    other = MemberSampler(3, [*(streams[i] for i in used), absent], [[*(weights[i] for i in used), 0.0]], [1.0], 60, WINDOW)
    assert np.array_equal(plain.next_windows(60), other.next_windows(60))
    assert other.realized()["absent"] == (0.0,)


def dealt_one_by_one(rule: DeficitRule, count: int) -> list[int]:
    return [rule.draw() for _ in range(count)]


# Equal and dyadic weights make ties of every kind; others make none.
tied_cells = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.0 / 3.0]), st.floats(1e-6, 1.0))


@st.composite
def packs(draw: st.DrawFn) -> list[tuple[np.ndarray, list[int], int]]:
    """Members with domains, phases and windows of their own, and how many windows each has drawn already."""
    members = []
    for _ in range(draw(st.integers(1, 5))):
        domains, phases = draw(st.integers(1, 6)), draw(st.integers(1, 4))
        cells = st.lists(tied_cells, min_size=domains, max_size=domains).filter(lambda values: sum(values) > 0)
        rows = draw(st.lists(cells, min_size=phases, max_size=phases))
        windows = draw(st.lists(st.integers(1, 40), min_size=phases, max_size=phases))
        members.append((np.array([row(values) for values in rows]), windows, draw(st.integers(0, sum(windows)))))
    return members


@settings(max_examples=200, deadline=None)
@given(members=packs(), data=st.data())
def test_dealing_a_pack_ahead_says_what_the_rule_says(members: list[tuple[np.ndarray, list[int], int]], data: st.DataObject) -> None:
    slow = [DeficitRule(weights, windows) for weights, windows, _ in members]
    fast = [DeficitRule(weights, windows) for weights, windows, _ in members]
    for one, other, (_, _, drawn) in zip(slow, fast, members, strict=True):
        dealt_one_by_one(one, drawn)
        other.counts[:] = one.counts
    left = min(rule.left for rule in slow)
    first = data.draw(st.integers(0, left))
    dealt = np.concatenate([deal(fast, first), deal(fast, left - first)])
    assert dealt.T.tolist() == [dealt_one_by_one(rule, left) for rule in slow]
    assert all(np.array_equal(one.counts, other.counts) for one, other in zip(slow, fast, strict=True))


def test_dealing_agrees_with_the_rule_far_into_a_run() -> None:
    """Where sums of weights are large, so that their last digits decide ties."""
    for weights in ([0.5, 0.5], [0.1, 0.2, 0.7], [1.0, 1.0, 1.0], [0.3, 0.3, 0.2, 0.2]):
        slow, fast = (DeficitRule(np.array([row(weights)]), [10**9]) for _ in range(2))
        drawn = np.array([[round(40_000_000 * weight) for weight in weights]])
        slow.counts[:], fast.counts[:] = drawn, drawn
        assert deal([fast], 200)[:, 0].tolist() == dealt_one_by_one(slow, 200)


@pytest.mark.parametrize("parts", [(1, 1, 3, 7), (1, 1, 5, 11), (1, 1, 5, 7), (1, 3, 7, 7), (2, 2, 7, 7), (2, 3, 8, 11)])
def test_what_is_equal_but_for_rounding_is_equal_for_both(parts: tuple[int, ...]) -> None:
    """Shares for which a rule without `TIE_WINDOWS`, in the one place or the other, deals differently within 120 windows (searched for)."""
    slow, fast = (DeficitRule(np.array([row(list(parts))]), [120]) for _ in range(2))
    assert deal([fast], 120)[:, 0].tolist() == dealt_one_by_one(slow, 120)


def test_nothing_is_dealt_beyond_the_end() -> None:
    with pytest.raises(AssertionError, match="no windows left"):
        deal([DeficitRule(np.array([[1.0]]), [3])], 4)


def plain_windows(seed: int, streams: list[DomainStream], weights: list[list[float]], fractions: list[float], windows: int) -> np.ndarray:
    """What `MemberSampler` hands out, window by window; `streams` in the order of their keys."""
    rule = DeficitRule(np.array([row(values) for values in weights]), phase_windows(windows, fractions))
    rows = []
    for _ in range(windows):
        index = rule.draw()
        stream, tokens = streams[index], np.asarray(TokenStore.open(streams[index].path).tokens)
        available = (len(tokens) - 1) // WINDOW
        unique = min(available, stream.unique_tokens // WINDOW)
        epoch, position = divmod(int(rule.counts[:, index].sum()) - 1, unique)
        order = hashed_order(available, "subset", stream.key)[:unique][hashed_order(unique, "epoch", seed, stream.key, epoch)]
        start = int(order[position]) * WINDOW
        rows.append(tokens[start : start + WINDOW + 1].astype(np.int64))
    return np.array(rows)


@settings(max_examples=40, deadline=None)
@given(block=st.integers(1, 40), counts=st.lists(st.integers(0, 9), max_size=12), seed=st.integers(0, 99))
def test_a_pack_hands_out_the_windows_of_the_plain_sampler(
    block: int, counts: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is read ahead, whoever is at another step, and where a sampler was left in the middle of a block."""
    folder = shared_domains(tmp_path_factory)
    streams = [DomainStream(f"key{index}", folder / str(index), 16 + 12 * index) for index in range(3)]
    weights, fractions = [[0.5, 0.25, 0.25], [0.0, 0.9, 0.1]], [0.3, 0.7]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "BLOCK_TOKENS", block * WINDOW)
        members = [MemberSampler(seed + k, streams, weights, fractions, 120, WINDOW) for k in range(3)]
        expected = [plain_windows(seed + k, streams, weights, fractions, 120) for k in range(3)]
        members[2].next_windows(7)
        taken = [0, 0, 7]
        for count in counts:
            out = next_windows(members, count)
            for k in range(3):
                assert np.array_equal(out[k], expected[k][taken[k] : taken[k] + count])
                taken[k] += count
            resumed = MemberSampler(seed, streams, weights, fractions, 120, WINDOW)
            resumed.load_state(json.loads(json.dumps(members[0].state())))
            members[0] = resumed
        assert [sum(map(sum, member.state().values())) for member in members] == taken


def test_a_member_that_cannot_read_leaves_all_where_they_were(
    pair: tuple[DomainStream, DomainStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "BLOCK_TOKENS", 6 * WINDOW)
    members = [MemberSampler(seed, pair, [[0.5, 0.5]], [1.0], 20, WINDOW) for seed in (1, 2, 3)]
    expected = [MemberSampler(seed, pair, [[0.5, 0.5]], [1.0], 20, WINDOW).next_windows(20) for seed in (1, 2, 3)]
    next_windows(members, 4)
    states = [member.state() for member in members]
    readers, members[1]._domains = members[1]._domains, ()
    with pytest.raises((ValueError, IndexError)):
        next_windows(members, 4)
    assert [member.state() for member in members] == states
    with pytest.raises((ValueError, IndexError)):
        members[1].next_windows(4)
    assert np.array_equal(members[2].next_windows(4), expected[2][4:8])
    members[1]._domains = readers
    assert np.array_equal(next_windows(members[:2], 16), [windows[4:] for windows in expected[:2]])


def write_domain(path: Path, tokens: int, offset: int = 0) -> Path:
    """A domain whose token at position p is `offset + p`, so that a window tells where it is from."""
    with TokenWriter(path, 1 << 20, "tok") as writer:
        writer.add(np.arange(offset, offset + tokens), tokens)
        writer.close("content")
    return path


_shared: list[Path] = []


def shared_domains(factory: pytest.TempPathFactory) -> Path:
    if not _shared:
        folder = factory.mktemp("domains")
        for index in range(9):
            write_domain(folder / str(index), 101, 1000 * index)
        _shared.append(folder)
    return _shared[0]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[DomainStream, DomainStream]:
    first = DomainStream("first", write_domain(tmp_path / "a", 81), 40)
    return first, DomainStream("second", write_domain(tmp_path / "b", 41, 1000), 1000)


def test_each_epoch_shows_every_unique_window_once(pair: tuple[DomainStream, DomainStream]) -> None:
    sampler = MemberSampler(1, pair[:1], [[1.0]], [1.0], 30, WINDOW)
    windows = sampler.next_windows(30)
    assert np.array_equal(windows - windows[:, :1], np.tile(np.arange(WINDOW + 1), (30, 1)))
    assert (windows[:, 0] % WINDOW == 0).all()
    epochs = windows[:, 0].reshape(3, 10)
    assert all(len(set(epoch)) == 10 for epoch in epochs.tolist())
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert not np.array_equal(epochs[0], epochs[1])
    assert sampler.epochs() == {"first": 3.0}


def test_unique_windows_are_nested_and_independent_of_the_seed(tmp_path: Path) -> None:
    path = write_domain(tmp_path / "a", 401)

    def seen(seed: int, unique_windows: int) -> list[int]:
        sampler = MemberSampler(seed, [DomainStream("k", path, unique_windows * WINDOW)], [[1.0]], [1.0], unique_windows, WINDOW)
        return sampler.next_windows(unique_windows)[:, 0].tolist()

    assert set(seen(1, 20)) == set(seen(2, 20)) < set(seen(1, 50)) < set(seen(1, 100))
    assert seen(1, 20) != seen(2, 20)
    assert len(set(seen(1, 100))) == 100


def test_whole_domain_is_within_reach(tmp_path: Path) -> None:
    """81 tokens at window 4 are 20 windows, the last of which ends at the last token; 80 tokens are 19."""
    for tokens, windows in ((81, 20), (80, 19)):
        path = write_domain(tmp_path / str(tokens), tokens)
        sampler = MemberSampler(1, [DomainStream("k", path, 10**6)], [[1.0]], [1.0], 200, WINDOW)
        assert len(set(sampler.next_windows(200)[:, 0].tolist())) == windows


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 59), seed=st.integers(0, 2**40))
def test_resuming_changes_nothing(first: int, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = shared_domains(tmp_path_factory)
    streams = [DomainStream(f"key{i}", folder / str(i), 40) for i in range(3)]
    arguments = (seed, streams, [[0.5, 0.3, 0.2], [0.0, 0.9, 0.1]], [0.4, 0.6], 60, WINDOW)
    whole = MemberSampler(*arguments)
    expected = whole.next_windows(60)
    before = MemberSampler(*arguments)
    start = before.next_windows(first)
    after = MemberSampler(*arguments)
    after.load_state(json.loads(json.dumps(before.state())))
    assert np.array_equal(np.concatenate([start, after.next_windows(60 - first)]), expected)
    assert after.realized() == whole.realized()


def test_realized_shares_and_epochs_are_counted(pair: tuple[DomainStream, DomainStream]) -> None:
    sampler = MemberSampler(5, pair, [[0.75, 0.25], [0.0, 1.0]], [0.5, 0.5], 16, WINDOW)
    windows = sampler.next_windows(16)
    assert sampler.realized() == {"first": (0.75, 0.0), "second": (0.25, 1.0)}
    assert (windows[:8, 0] >= 1000).sum() == 2
    assert (windows[8:, 0] >= 1000).all()
    assert sampler.epochs() == {"first": 6 / 10, "second": 10 / 10}


def test_a_seed_changes_the_order_only(pair: tuple[DomainStream, DomainStream]) -> None:
    draws = [MemberSampler(seed, pair, [[0.5, 0.5]], [1.0], 20, WINDOW).next_windows(20) for seed in (1, 2)]
    assert not np.array_equal(*draws)
    assert sorted(draws[0][:, 0].tolist()) == sorted(draws[1][:, 0].tolist())


def test_hashed_order_is_pinned() -> None:
    """A golden value: another order would silently change what every recorded trial means."""
    assert hashed_order(12, "subset", "some key", 7).tolist() == GOLDEN_ORDER
    assert sorted(hashed_order(1000, "a").tolist()) == list(range(1000))
    longer = hashed_order(1000, "a").tolist()
    assert [index for index in longer if index < 10] == hashed_order(10, "a").tolist()
    assert hashed_order(0, "a").tolist() == []


def test_hashed_order_looks_uniform() -> None:
    """Where position 0 lands among 8 over 4,000 keys: chi-squared with 7 degrees of freedom, refused beyond 5 sigma (deterministic)."""
    places = np.array([hashed_order(8, "key", index).tolist().index(0) for index in range(4000)])
    chi_squared = ((np.bincount(places, minlength=8) - 500) ** 2 / 500).sum()
    assert abs(chi_squared - 7) < 5 * np.sqrt(14)


def test_phase_windows() -> None:
    assert phase_windows(10, [1.0]) == (10,)
    assert phase_windows(10, [0.25, 0.75]) == (2, 8)
    assert sum(phase_windows(17, [0.3, 0.3, 0.4])) == 17
    with pytest.raises(ValueError, match="without a window"):
        phase_windows(10, [0.01, 0.99])
    with pytest.raises(ValueError, match="positive"):
        phase_windows(10, [0.0, 1.0])


@pytest.mark.parametrize(
    ("keys", "weights", "match"),
    [
        (("a", "a"), [[0.5, 0.5]], "repeat"),
        (("a", "b"), [[0.5, 0.6]], "sum to 1"),
        (("a", "b"), [[1.5, -0.5]], "at least 0"),
        (("a", "b"), [[float("nan"), 1.0]], "finite"),
        (("a", "b"), [[1.0]], "shape"),
        (("a", "b"), [[0.5, 0.5], [0.5, 0.5]], "shape"),
    ],
)
def test_wrong_weights_are_refused(tmp_path: Path, keys: tuple[str, ...], weights: list[list[float]], match: str) -> None:
    path = write_domain(tmp_path / "a", 100)
    with pytest.raises(ValueError, match=match):
        MemberSampler(0, [DomainStream(key, path, 100) for key in keys], weights, [1.0], 10, WINDOW)


def test_a_domain_shorter_than_a_window_is_named(tmp_path: Path) -> None:
    path = write_domain(tmp_path / "short", WINDOW)
    with pytest.raises(ValueError, match="short"):
        MemberSampler(0, [DomainStream("a", path, 100)], [[1.0]], [1.0], 10, WINDOW)


def test_state_of_other_domains_is_refused(pair: tuple[DomainStream, DomainStream]) -> None:
    state = MemberSampler(0, pair[:1], [[1.0]], [1.0], 10, WINDOW).state()
    with pytest.raises(ValueError, match="does not fit"):
        MemberSampler(0, pair, [[0.5, 0.5]], [1.0], 10, WINDOW).load_state(state)
