"""The card of an exported proxy, README.md of its folder: what it is, how to load it, what it was trained on and what it scored.

Made from the trial alone, so that the same proxy gives the same card. A proxy is made to rank mixtures, and the card says so first.
"""

from __future__ import annotations

from collections.abc import Mapping

from mixopt.balance import Balance
from mixopt.history import TrialRecord
from mixopt.terminal import quantity
from mixopt.trial import Trial
from proxy_models.config import ProxyConfig

TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
tags: [mixopt, proxy]
---

# {title}

A proxy of {total} parameters ({active} active), {made} to rank mixtures of training domains. It is small and
briefly trained: good for comparing mixtures, not for writing text.

```python
{loading}
```

It loads with the classes that transformers ships ({architecture}); no code comes with it. {comparison}

- Each document of its training text ends with the end token{end}; the first one of a window often begins within a document.
- Windows had {window} tokens. Positions beyond were never seen.
- The norm that follows the lookup of a token is folded into the table of the input, which is why input and output matrix are stored apart.
{collapsed}{scored}{no_tokenizer}
## Where it comes from

| | |
|---|---|
{facts}

## The mixture

Shares of tokens; an epoch is one pass over the unique tokens that this proxy could see of a domain.

| domain | asked for | drawn | unique tokens | epochs |
|---|---|---|---|---|
{mixture}

## Losses at the end of training

{losses}
"""

LOADING = """from transformers import AutoModelForCausalLM{and_tokenizer}

model = AutoModelForCausalLM.from_pretrained("PATH OF THIS FOLDER")"""
LOADING_TOKENIZER = """
tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")
text = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=20)
print(tokenizer.decode(text[0]))"""


def model_card(
    record: TrialRecord, config: ProxyConfig, metrics: Mapping[str, str], mixture: str, with_tokenizer: bool, comparison: str
) -> str:
    """The card as Markdown.

    Args:
        metrics: evaluation key -> name; evaluations without a name are left out.
        mixture: how the mixture is called.
        comparison: what is known of its logits, as a sentence.
    """
    trial, parameters = record.trial, config.parameters()
    loading = LOADING.format(and_tokenizer=", AutoTokenizer" if with_tokenizer else "") + (LOADING_TOKENIZER if with_tokenizer else "")
    return TEMPLATE.format(
        title=f"{mixture}: a {trial.source.size} proxy",
        total=quantity(parameters.total),
        active=quantity(parameters.active),
        made=_made(record),
        loading=loading,
        architecture="Ernie4_5_MoeForCausalLM" if config.n_experts else "LlamaForCausalLM",
        comparison=comparison,
        end=", which is also its token of beginning" if with_tokenizer else "",
        window=f"{int(trial.recipe['window']):,}",
        collapsed=_collapsed(record),
        scored=_scored(record),
        no_tokenizer="" if with_tokenizer else "- The tokenizer is not in this folder.\n",
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(record, mixture).items()),
        mixture="\n".join(_domains(record)),
        losses=_losses(record, metrics),
    )


def _facts(record: TrialRecord, mixture: str) -> dict[str, str]:
    trial, outcome = record.trial, record.outcome
    facts = {
        "trial": f"`{trial.trial_id}`",
        "mixture": mixture,
        "source": trial.source.key,
        "seed": str(trial.seed),
        "tokenizer": f"`{trial.tokenizer_hash}`",
        "engine": trial.engine_version,
        **{name.replace("_", " "): _value(value) for name, value in sorted(trial.recipe.items()) if name not in ("beginning", "merge")},
    }
    if outcome is not None and not trial.recipe.get("merge"):
        facts |= {"training tokens": f"{outcome.tokens:,}", "training FLOPs": f"{outcome.flops:.3g}"}
    if outcome is not None:
        facts |= {"code": str(outcome.diagnostics["code_version"])} if "code_version" in outcome.diagnostics else {}
    return facts


def _made(record: TrialRecord) -> str:
    """How it came about, as part of the first sentence."""
    trial = record.trial
    tokens = quantity(record.outcome.tokens if record.outcome else trial.source.tokens)
    merge = trial.recipe.get("merge")
    if merge:
        parts = ", ".join(f"{weight:.3g} of `{name}`" for name, weight in merge["weights"].items())
        return f"averaged by mixopt from {len(merge['weights'])} proxies of {tokens} tokens each ({parts}; operator {merge['operator']['kind']})"
    return f"trained by mixopt on {tokens} tokens{_beginning(trial)}"


def _beginning(trial: Trial) -> str:
    """Part of the first sentence; empty for a proxy from scratch, whose tokens are all it was ever trained on."""
    described = trial.recipe.get("beginning")
    if not described:
        return ""
    parents = ", ".join(f"`{key}`" for key in trial.inputs)
    if described["kind"] == "upcycled":
        drawn = f"{float(described['reinitialized']):.0%} of their hidden units drawn anew"
        return f", after its experts were made of the dense layers of trial {parents} ({drawn}),"
    return f", after those of trial {parents}, whose weights it began with,"


def _collapsed(record: TrialRecord) -> str:
    """A line on its router, where that has collapsed."""
    balance = Balance.of(record.outcome.diagnostics) if record.outcome else None
    if balance is None or not balance.collapse:
        return ""
    return f"- Its router has collapsed ({balance.collapse}): it is in effect a smaller proxy than its name says.\n"


def _scored(record: TrialRecord) -> str:
    """A line on prompts, where there were some."""
    scored = record.outcome.diagnostics.get("scored_tokens") if record.outcome else None
    if record.outcome is None or scored is None or sum(scored.values()) == record.outcome.tokens:
        return ""
    return f"- Prompts were seen and not learned: the loss was taken on {sum(scored.values()):,} of {record.outcome.tokens:,} tokens.\n"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(_value(entry) if name == "kind" else f"{name} {_value(entry)}" for name, entry in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _domains(record: TrialRecord) -> list[str]:
    """One row per domain, largest share first; of a schedule the average over its phases."""
    trial, outcome = record.trial, record.outcome
    asked = trial.schedule.average().as_dict()
    realized = outcome.realized if outcome else {}
    epochs: Mapping[str, float] = outcome.diagnostics.get("epochs", {}) if outcome else {}
    rows = []
    for domain in sorted(trial.domains, key=lambda domain: (-asked[domain.name], domain.name)):
        shares = realized.get(domain.content_hash, (0.0,) * len(trial.schedule.fractions))
        drawn = sum(fraction * share for fraction, share in zip(trial.schedule.fractions, shares, strict=True))
        seen = f"{epochs[domain.content_hash]:.2f}" if domain.content_hash in epochs else ""
        name = domain.name.replace("|", "\\|")
        rows.append(f"| {name} | {asked[domain.name]:.2%} | {drawn:.2%} | {domain.unique_tokens:,} | {seen} |")
    return rows


def _losses(record: TrialRecord, metrics: Mapping[str, str]) -> str:
    outcome = record.outcome
    ends = [m for m in outcome.measurements if m.tokens == outcome.tokens and m.evaluation_key in metrics] if outcome else []
    if not ends:
        return "None of its losses has a name in the search that it was exported from."
    rows = sorted((metrics[m.evaluation_key].replace("|", "\\|"), m.bits_per_byte, m.loss_nats) for m in ends)
    table = "\n".join(f"| {name} | {bits:.4f} | {nats:.4f} |" for name, bits, nats in rows)
    return f"On the held-out rows that the search scores.\n\n| metric | bits per byte | nats per token |\n|---|---|---|\n{table}"
