"""Epoch matching, from an inventory to the windows that are drawn: a longer proxy may see all that a shorter one may, and repeats as the target run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.config import Experiment
from mixopt.corpus.manifest import DomainFiles, Manifest, TokenFile
from mixopt.domains import MINIMUM_UNIQUE_WINDOWS, Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.mixture import Mixture, Schedule
from mixopt.trial import Source, Trial
from proxy_models.sampler import MemberSampler
from proxy_models.token_store import TokenWriter
from workers.compose import compose
from workers.convert import member_of

WINDOW = 4
NAMES = ("scarce", "plenty")
OFFSETS = {"scarce": 0, "plenty": 100_000}


@dataclass(frozen=True)
class Corpus:
    """Token files whose token at position p is the domain's offset + p, so that a window tells where it is from."""

    folder: Path

    def file(self, name: str, tokens: int) -> Path:
        path = self.folder / f"{name}-{tokens}.tokens"
        if not path.exists():
            with TokenWriter(path, 1 << 20, "tokenizer") as writer:
                writer.add(np.arange(OFFSETS[name], OFFSETS[name] + tokens), tokens)
                writer.close(f"content of {name}")
        return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@dataclass(frozen=True)
class Inventory:
    """A target run: its tokens, the unique tokens of each domain, and what of them was prepared."""

    budget: int
    unique: tuple[int, int]
    prepared: tuple[int, int]
    repeats: float

    def domains(self) -> DomainSet:
        rows = zip(NAMES, self.unique, self.prepared, strict=True)
        return DomainSet(
            tuple(Domain(n, f"hash of {n}", there, u * self.repeats, repeats=self.repeats) for n, u, there in rows), self.budget
        )

    def trial(self, size: str, tokens: int, weight: float, seed: int) -> Trial:
        factory = TrialFactory(self.domains(), Source("trained", size, tokens), {"window": WINDOW, "learning_rate": 1e-3}, "tokenizer", "1")
        return factory.make(Schedule.constant(Mixture(NAMES, (weight, 1 - weight))), seed, "")


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """Domains from a thousandth of the target run to three times it, so that some are floored, some capped and some neither."""
    budget = draw(st.integers(10**6, 10**9))
    unique = [int(budget * 10 ** draw(st.floats(-3, 0.5))) for _ in NAMES]
    # Few numbers, because each is a file.
    prepared = [draw(st.sampled_from([300, 803, 1500])) for _ in NAMES]
    return Inventory(budget, (unique[0], unique[1]), (prepared[0], prepared[1]), draw(st.sampled_from([1.0, 2.0])))


def sampler_of(trial: Trial, inventory: Inventory, corpus: Corpus, windows: int) -> MemberSampler:
    files = {f"hash of {n}": corpus.file(n, there) for n, there in zip(NAMES, inventory.prepared, strict=True)}
    member = member_of(trial, files)
    return MemberSampler(member.seed, member.domains, member.weights, member.fractions, windows, WINDOW)


def may_see(trial: Trial, inventory: Inventory, corpus: Corpus) -> dict[str, set[int]]:
    """Where the windows begin that the proxy would draw if it were trained for as long as it takes to see all that it may, by domain."""
    shares = trial.schedule.array()[0]
    enough = max(math.ceil(d.unique_tokens / WINDOW / share) for d, share in zip(trial.domains, shares, strict=True))
    starts = set(sampler_of(trial, inventory, corpus, enough + 4).next_windows(enough + 4)[:, 0].tolist())
    return {"scarce": {s for s in starts if s < OFFSETS["plenty"]}, "plenty": {s for s in starts if s >= OFFSETS["plenty"]}}


@settings(max_examples=25, deadline=None)
@given(
    inventory=inventories(),
    tokens=st.integers(400, 8000),
    weights=st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
    seed=st.integers(0, 9),
)
def test_a_longer_proxy_may_see_all_that_a_shorter_one_may(
    inventory: Inventory, tokens: int, weights: tuple[float, float], seed: int, corpus: Corpus
) -> None:
    """Whatever their sizes, seeds and mixtures; so a verification, and every rung of a ladder, trains on more of the same text."""
    short = inventory.trial("nano", tokens, weights[0], seed)
    long = inventory.trial("micro", 2 * tokens, weights[1], seed + 1)
    seen, more = may_see(short, inventory, corpus), may_see(long, inventory, corpus)
    for index, name in enumerate(NAMES):
        assert seen[name] <= more[name]
        assert len(seen[name]) == short.domains[index].unique_tokens // WINDOW
        assert len(more[name]) == long.domains[index].unique_tokens // WINDOW


@settings(max_examples=60, deadline=None)
@given(inventory=inventories(), tokens=st.integers(400, 8000), weight=st.floats(0.2, 0.8), seed=st.integers(0, 9))
def test_epochs_are_those_of_the_target_run_within_a_window(
    inventory: Inventory, tokens: int, weight: float, seed: int, corpus: Corpus
) -> None:
    """As the sampler counts them. A window more or less is drawn, or may be seen; floored domains are repeated less, capped ones more."""
    trial = inventory.trial("nano", tokens, weight, seed)
    windows = tokens // WINDOW
    sampler = sampler_of(trial, inventory, corpus, windows)
    sampler.next_windows(windows)
    notes = inventory.domains().unique_tokens(tokens, WINDOW)
    for index, name in enumerate(NAMES):
        unique = trial.domains[index].unique_tokens // WINDOW
        drawn = round(sampler.epochs()[f"hash of {name}"] * unique)
        assert sampler.epochs()[f"hash of {name}"] == pytest.approx(drawn / unique)
        target = float(Fraction(trial.schedule.array()[0, index]) * inventory.budget / inventory.unique[index])
        # Within tokens that fill no window of the trial, too: those of `tokens` that are left over are not trained on.
        least, most = (drawn - 1) / (unique + 1), (drawn + 2) / unique
        if notes[name].note == "floored":
            assert drawn / unique <= target + 1 / unique
            assert unique == MINIMUM_UNIQUE_WINDOWS
        elif notes[name].note == "capped":
            assert most >= target
        else:
            assert least <= target <= most


def test_a_scarce_domain_repeats_many_times_in_the_proxy_as_in_the_target_run(corpus: Corpus) -> None:
    """By hand: 1,000,000 tokens, half of them from 20,000 unique ones, are 25 epochs. A proxy of 16,000 tokens draws 2,000 windows, and may see 80."""
    inventory = Inventory(1_000_000, (20_000, 10**6), (3000, 3000), 1.0)
    trial = inventory.trial("nano", 16_000, 0.5, 1)
    sampler = sampler_of(trial, inventory, corpus, 4000)
    starts = sampler.next_windows(4000)[:, 0]
    assert len(set(starts[starts < OFFSETS["plenty"]].tolist())) == 80
    assert sampler.epochs()["hash of scarce"] == 25.0


def test_search_and_verification_of_an_experiment_see_nested_text(corpus: Corpus) -> None:
    """Through `compose`: another size and length, but one window, on which the order of windows hangs."""
    prepared, window = 100_000, 64
    made = Experiment.model_validate(
        {
            "name": "nested",
            "output": str(corpus.folder),
            "budget_tokens": "1M",
            "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": "200k"} for name in NAMES],
            "proxy": {"size": "nano", "tokens": 100_000, "window": window, "tokens_per_step": 256},
            "verification": {"size": "micro", "tokens": 300_000},
        }
    )
    files = {}
    for name in NAMES:
        train = TokenFile(corpus.file(name, prepared).name, f"hash of {name}", prepared, prepared, 1)
        files[name] = DomainFiles(train, TokenFile("valid", f"valid of {name}", 10_000, 30_000, 9))
    search = compose(made, Manifest(corpus.folder, "tokenizer.json", "hash", 512, files, {}))
    seen = []
    for factory in (search.factory, search.verification_factory):
        member = member_of(
            factory.make(Schedule.constant(search.domains.uniform()), len(seen), ""),
            {f"hash of {name}": corpus.file(name, prepared) for name in NAMES},
        )
        windows = 2 * max(stream.unique_tokens for stream in member.domains) // window + 2
        drawn = MemberSampler(member.seed, member.domains, member.weights, member.fractions, windows, window).next_windows(windows)
        seen.append(set(drawn[:, 0].tolist()))
    assert seen[0] < seen[1]
    # 200k unique tokens for 1M: 20k for 100k, and 60k for 300k, of each domain in whole windows.
    assert [len(starts) for starts in seen] == [2 * (20_000 // window), 2 * (60_000 // window)]
