"""Many merges at once equal the slow loop bit for bit, in weights and in what they score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy_models.checkpoint import Checkpoint, save_checkpoints, with_prefix
from proxy_models.config import ProxyConfig, proxy_config
from proxy_models.evaluate import EvaluationSpec, score_weights
from proxy_models.merging import pieces
from proxy_models.merging.components import HeldComponent, StoredComponent, members_of
from proxy_models.merging.contraction import merged_pack, score_mixtures
from proxy_models.merging.merge import merge, save_merge
from proxy_models.model import PackedProxy
from proxy_models.token_store import TokenWriter

Branch = Callable[..., HeldComponent]
NAMES = ["a", "b", "c"]
WEIGHTS = np.array([[0.2, 0.3, 0.5], [-0.3, 0.5, 0.8], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3], [0.05, 0.9, 0.05]])


def mixture(weights: np.ndarray) -> Mapping[str, float]:
    return dict(zip(NAMES, weights.tolist(), strict=True))


def parts(branch: Branch) -> list[HeldComponent]:
    return [branch(name, seed) for seed, name in enumerate(NAMES)]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda row: sum(row) > 1e-3), min_size=1, max_size=6))
def test_equal_to_the_slow_loop(tiny: ProxyConfig, branch: Branch, raw: list[list[float]]) -> None:
    weights = np.array(raw) / np.sum(raw, axis=1, keepdims=True)
    pack = merged_pack(tiny, parts(branch), weights)
    for m, row in enumerate(weights):
        expected = merge(parts(branch), mixture(row))
        assert all(torch.equal(pack.member_state(m)[name], value) for name, value in expected.items())


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.lists(st.lists(st.floats(-2, 2), min_size=2, max_size=2), min_size=1, max_size=6))
def test_equal_to_the_slow_loop_beyond_the_components(tiny: ProxyConfig, branch: Branch, raw: list[list[float]]) -> None:
    weights = np.array([[*row, 1 - sum(row)] for row in raw])
    pack = merged_pack(tiny, parts(branch), weights)
    for m, row in enumerate(weights):
        expected = merge(parts(branch), mixture(row))
        assert all(torch.equal(pack.member_state(m)[name], value) for name, value in expected.items())


def test_equal_to_a_plain_sum(tiny: ProxyConfig, branch: Branch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out, with nothing of the streaming; and blocks of a few rows."""
    monkeypatch.setattr(pieces, "BLOCK_SHARE", 0.01)
    components = parts(branch)
    pack = merged_pack(tiny, components, WEIGHTS)
    for name, shape in components[0].shapes.items():
        thetas = [component.rows(name, 0, shape[0]).double() for component in components]
        for m, row in enumerate(WEIGHTS.tolist()):
            expected = (row[0] * thetas[0] + row[1] * thetas[1] + row[2] * thetas[2]).float()
            assert torch.equal(pack.state_dict()[name][m], expected), name


def test_members_of_a_pack_are_components(tiny: ProxyConfig, branch: Branch) -> None:
    together = PackedProxy(tiny, [0, 1, 2])
    for k, part in enumerate(parts(branch)):
        together.load_member_state(k, {name: part.rows(name, 0, shape[0]) for name, shape in part.shapes.items()})
    one, other = (merged_pack(tiny, components, WEIGHTS) for components in (members_of(together, NAMES), parts(branch)))
    assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())


@pytest.fixture
def held_out(tmp_path: Path, tiny: ProxyConfig) -> list[EvaluationSpec]:
    specs = []
    for key in ("x", "y"):
        generator = np.random.default_rng(len(specs))
        with TokenWriter(tmp_path / key, tiny.vocab_size, "tok") as writer:
            for length in (20, 50, 7, 33):
                writer.add([*generator.integers(1, tiny.vocab_size, length).tolist(), 0], 3 * length, 0)
            writer.close(key)
        specs.append(EvaluationSpec(key, tmp_path / key, "text", None))
    return specs


@pytest.mark.parametrize("places", [1, 2, 8])
def test_scores_are_those_of_written_merges(tmp_path: Path, held_out: list[EvaluationSpec], places: int) -> None:
    """Of nano, as narrower proxies do not score alike to the last digit in packs of every size."""
    nano = proxy_config("nano", 96)
    stored = []
    for part in members_of(PackedProxy(nano, [0, 1, 2]), NAMES):
        path = tmp_path / f"{part.name}.safetensors"
        state = {name: 4 * part.rows(name, 0, shape[0]) for name, shape in part.shapes.items()}
        save_checkpoints({path: Checkpoint(with_prefix("model", state), {})})
        stored.append(StoredComponent(part.name, path))
    found = score_mixtures(nano, stored, WEIGHTS, held_out, 32, places=places)
    for row, scores in zip(WEIGHTS, found, strict=True):
        save_merge(tmp_path / "merged", stored, mixture(row))
        assert scores == score_weights(nano, tmp_path / "merged", held_out, 32)
    assert len({scores[0].loss_nats for scores in found}) == len(WEIGHTS)


def test_a_corner_scores_as_the_component(tmp_path: Path, tiny: ProxyConfig, branch: Branch, held_out: list[EvaluationSpec]) -> None:
    (corner,) = score_mixtures(tiny, parts(branch), [[0.0, 1.0, 0.0]], held_out, 32)
    (alone,) = score_mixtures(tiny, [branch("b", 1)], [[1.0]], held_out, 32)
    assert corner == alone


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([[0.5, 0.5]], r"shape \(1, 2\); they must be \(mixtures, 3\)"),
        ([0.2, 0.3, 0.5], r"shape \(3,\)"),
        ([[0.2, 0.3, 0.6]], "sum to 1.1"),
        ([[0.2, 0.3, 0.5], [-0.1, 0.6, float("nan")]], "component 'c' is nan"),
    ],
)
def test_weights_that_do_not_fit(tiny: ProxyConfig, branch: Branch, weights: list[list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        merged_pack(tiny, parts(branch), weights)


def test_another_configuration_names_the_tensor(tiny_dense: ProxyConfig, branch: Branch) -> None:
    with pytest.raises(ValueError, match=r"'layers.0.moe.expert_in' is in 'a' but not in 'the configuration'"):
        merged_pack(tiny_dense, parts(branch), WEIGHTS)


def test_dense_proxies_merge(tiny_dense: ProxyConfig) -> None:
    components = members_of(PackedProxy(tiny_dense, [0, 1, 2]), NAMES)
    pack = merged_pack(tiny_dense, components, WEIGHTS)
    expected = merge(components, mixture(WEIGHTS[0]))
    assert all(torch.equal(pack.member_state(0)[name], value) for name, value in expected.items())
