"""Megatron-LM: a blend file for `--data-args-path`.

Megatron reads the whole file, splits it at white space, and takes pairs of weight and prefix (megatron/training/arguments.py and
core/datasets/utils.py at d98e8a6). Weights count fixed-length sequences, which is tokens. The file can hold no comment, so the provenance
lies beside it. Megatron-Bridge and Megatron-DeepSpeed take the same pairs in `data_path` and `--data-path`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mixopt.errors import ConfigError
from mixopt.export.base import ExportInput, decimal_weights, only_phase
from mixopt.export.provenance import SIDECAR_NAME, provenance_json

DEFAULT_PREFIX = "{domain}_text_document"
# A 16-bit index numbers the datasets of a blend (core/datasets/blended_dataset.py).
MAX_DATASETS = 32_767


@dataclass(frozen=True)
class MegatronExporter:
    name: str = "megatron"
    description: str = "Megatron-LM: a file of weight and prefix pairs for --data-args-path."
    options: Mapping[str, str] = field(
        default_factory=lambda: {"prefix": f"Dataset prefix without .bin or .idx; {{domain}} is the name. Default: {DEFAULT_PREFIX}"}
    )
    phases: bool = False

    def render(self, request: ExportInput) -> dict[str, str]:
        template = request.options.get("prefix", DEFAULT_PREFIX)
        weights = decimal_weights(only_phase(request).as_dict())
        if len(weights) >= MAX_DATASETS:
            raise ConfigError(f"The mixture has {len(weights)} domains; Megatron blends fewer than {MAX_DATASETS}.")
        prefixes = {name: _prefix(template, name) for name in weights}
        lines = [f"{weight} {prefixes[name]}\n" for name, weight in weights.items()]
        return {"megatron_blend.txt": "".join(lines), SIDECAR_NAME: provenance_json(request)}


def _prefix(template: str, domain: str) -> str:
    if "{domain}" not in template:
        raise ConfigError(f"Option prefix is '{template}'.", "Write {domain} where the name of the domain goes.")
    prefix = template.replace("{domain}", domain)
    if prefix.split() != [prefix]:
        raise ConfigError(
            f"Megatron splits its blend file at white space, so it cannot read the prefix '{prefix}'.",
            "Rename the domain, or give a prefix without spaces.",
        )
    if prefix.endswith((".bin", ".idx")):
        raise ConfigError(f"Prefix '{prefix}' ends in {prefix[-4:]}.", "Megatron adds .bin and .idx itself; leave them out.")
    return prefix


EXPORTERS = (MegatronExporter(),)
