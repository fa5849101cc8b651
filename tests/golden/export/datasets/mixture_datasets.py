# Made by mixopt. Weights are shares of tokens.
# search: "demo"
# search_id: "55555555555555555555"
# experiment_hash: "eeeeeeeeeeeeeeeeeeee"
# mixopt_version: "0.1.0"
# arm: "proposal"
# verification: "The proposal won by 0.021 bits per byte."
# predicted_objective: {"mean": -3.0, "low": -4.0, "high": -2.0}
# objective: {"kind": "noise_scaled", "over": "targets", "pull": 0.05}
# budget_tokens: 30000000000.0
# tokenizer: {"hash": "abababababababababababababababababababababababababababababababab", "vocab_size": 8192}
# domain "web": {"weight": 0.55, "epochs": 0.825, "max_epochs": 100.0, "target_tokens": 20000000000.0, "content_hash": "0000000000000000000000000000000000000000000000000000000000000000"}
# domain "code": {"weight": 0.251234568, "epochs": 0.376852, "max_epochs": 100.0, "target_tokens": 20000000000.0, "content_hash": "0000000000000000000000000000000000000000000000000000000000000001"}
# domain "math": {"weight": 0.198765432, "epochs": 0.298148, "max_epochs": 100.0, "target_tokens": 20000000000.0, "content_hash": "0000000000000000000000000000000000000000000000000000000000000002"}
# domain "licences": {"weight": 0.0, "epochs": 0.0, "max_epochs": 100.0, "target_tokens": 20000000000.0, "content_hash": "0000000000000000000000000000000000000000000000000000000000000003"}
"""Interleaves the training domains in the shares that mixopt found. Needs the package `datasets`."""

from datasets import Dataset, IterableDataset, interleave_datasets

# Share of tokens per domain: the mixture itself.
TOKEN_SHARES = {
    'web': 0.55,
    'code': 0.251234568,
    'math': 0.198765432,
}

# Mean tokens of a document, as prepared for the search.
MEAN_TOKENS = {
    'web': 100.0,
    'code': 200.0,
    'math': 300.0,
}

# Share of documents per domain, which is what `interleave_datasets` draws: token share over mean tokens, summing to 1.
DOCUMENT_SHARES = {
    'web': 0.741367355413,
    'code': 0.169324642969,
    'math': 0.089308001618,
}


def interleave(domains: dict[str, Dataset | IterableDataset], seed: int = 42) -> IterableDataset:
    """An endless stream of documents; stop at the token budget. `domains` holds one dataset per name of DOCUMENT_SHARES."""
    missing = [name for name in DOCUMENT_SHARES if name not in domains]
    if missing:
        raise ValueError(f"no dataset for: {', '.join(missing)}")
    streams = [domains[name] if isinstance(domains[name], IterableDataset) else domains[name].to_iterable_dataset() for name in DOCUMENT_SHARES]
    return interleave_datasets(
        [stream.repeat(None) for stream in streams],
        probabilities=list(DOCUMENT_SHARES.values()),
        seed=seed,
        stopping_strategy="all_exhausted",
    )
