"""Hugging Face datasets: a Python file with one function that interleaves the domains.

`interleave_datasets` draws *documents*, a mixture counts *tokens*: probability_i is proportional to weight_i / mean tokens of a document of
domain i. Each domain repeats without end and the trainer stops at its token budget, because the stopping strategies end at the first or at
the last domain to run out, and neither is the budget. A probability of 0 would never be exhausted and hangs (datasets PR 8318): dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mixopt.errors import ConfigError
from mixopt.export.base import ExportInput, decimal_weights, only_phase
from mixopt.export.provenance import provenance_comment

MEAN_TOKENS_OPTION = "mean_tokens"
# Mean lengths differ by orders of magnitude between domains, so that rounding a probability costs more than rounding a weight.
PROBABILITY_DECIMALS = 12

CODE = '''"""Interleaves the training domains in the shares that mixopt found. Needs the package `datasets`."""

from datasets import Dataset, IterableDataset, interleave_datasets

# Share of tokens per domain: the mixture itself.
TOKEN_SHARES = {{
{token_shares}}}

# Mean tokens of a document, as prepared for the search.
MEAN_TOKENS = {{
{mean_tokens}}}

# Share of documents per domain, which is what `interleave_datasets` draws: token share over mean tokens, summing to 1.
DOCUMENT_SHARES = {{
{document_shares}}}


def interleave(domains: dict[str, Dataset | IterableDataset], seed: int = 42) -> IterableDataset:
    """An endless stream of documents; stop at the token budget. `domains` holds one dataset per name of DOCUMENT_SHARES."""
    missing = [name for name in DOCUMENT_SHARES if name not in domains]
    if missing:
        raise ValueError(f"no dataset for: {{', '.join(missing)}}")
    streams = [domains[name] if isinstance(domains[name], IterableDataset) else domains[name].to_iterable_dataset() for name in DOCUMENT_SHARES]
    return interleave_datasets(
        [stream.repeat(None) for stream in streams],
        probabilities=list(DOCUMENT_SHARES.values()),
        seed=seed,
        stopping_strategy="all_exhausted",
    )
'''


@dataclass(frozen=True)
class DatasetsExporter:
    name: str = "datasets"
    description: str = "Hugging Face datasets: a Python file that interleaves the domains, with shares of documents."
    options: Mapping[str, str] = field(
        default_factory=lambda: {
            MEAN_TOKENS_OPTION: "Mean tokens per document, as web=612,code=1480; default: of the documents prepared for the search."
        }
    )
    phases: bool = False

    def render(self, request: ExportInput) -> dict[str, str]:
        token_shares = decimal_weights(only_phase(request).as_dict())
        mean_tokens = _mean_tokens(request, list(token_shares))
        per_document = {name: float(share) / mean_tokens[name] for name, share in token_shares.items()}
        total = math.fsum(per_document.values())
        document_shares = decimal_weights({name: value / total for name, value in per_document.items()}, PROBABILITY_DECIMALS)
        lost = [name for name in token_shares if name not in document_shares]
        if lost:
            raise ConfigError(
                f"Domain '{lost[0]}' would be less than one document in {10**PROBABILITY_DECIMALS:.0e}.",
                "Split its documents, or export a mixture without it.",
            )
        code = CODE.format(
            token_shares=_entries(token_shares),
            mean_tokens=_entries({name: repr(mean_tokens[name]) for name in token_shares}),
            document_shares=_entries(document_shares),
        )
        return {"mixture_datasets.py": provenance_comment(request) + code}


def _entries(numbers: Mapping[str, str]) -> str:
    # ascii() escapes everything that could end the literal or change the file's meaning under another encoding.
    return "".join(f"    {name!a}: {number},\n" for name, number in numbers.items())


def _mean_tokens(request: ExportInput, names: list[str]) -> dict[str, float]:
    """Mean tokens per document: from the option, else from the documents prepared for the search."""
    means = {
        domain["name"]: domain["prepared_tokens"] / domain["prepared_documents"]
        for domain in request.context["domains"]
        if domain.get("prepared_documents")
    }
    means.update(_parse_means(request.options.get(MEAN_TOKENS_OPTION, ""), request.schedule.domains))
    missing = [name for name in names if name not in means]
    if missing:
        raise ConfigError(
            f"The mean tokens per document of '{missing[0]}' are not known, and datasets draws documents.",
            f"Give them as the option {MEAN_TOKENS_OPTION}={missing[0]}=NUMBER.",
        )
    return means


def _parse_means(text: str, domains: tuple[str, ...]) -> dict[str, float]:
    means: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.rpartition("=")
        try:
            mean = float(number)
        except ValueError:
            mean = math.nan
        if name not in domains or not (math.isfinite(mean) and mean > 0):
            raise ConfigError(f"Option {MEAN_TOKENS_OPTION} holds '{part}'.", "Write NAME=NUMBER with a domain of the mixture, as web=612.")
        means[name] = mean
    return means


EXPORTERS = (DatasetsExporter(),)
