"""A trained proxy as a folder that other programs load: weights, configuration, tokenizer, and a card that says what it is.

The folder is written beside its place and renamed, so it is whole or not there. It can be written where the transformers library is not installed;
where it is, the folder is loaded as a user would load it and compared with the proxy before it gets its name. The trade-off: that takes some
seconds, and `verify=False` saves them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixopt.code_version import code_version
from mixopt.corpus.manifest import Manifest
from mixopt.corpus.tokenizer import CorpusTokenizer, load_tokenizer
from mixopt.errors import ConfigError, DataError, RunError
from mixopt.history import TrialRecord
from mixopt.trial import Trial
from workers.averages import write_merge
from workers.convert import proxy_of
from workers.proxy_card import model_card
from workers.trial_folder import TrialFolder

if TYPE_CHECKING:
    from torch import Tensor

    from proxy_models.config import ProxyConfig

FORMATS = ("transformers",)
LAYOUT_VERSION = 1
"""Raised when the same weights would give other files."""
FACTS_NAME = "mixopt.json"
INSTALL = "`pip install -c constraints.txt transformers` installs it."


@dataclass(frozen=True)
class ExportedProxy:
    """Attributes: new: False if the folder was there already, with the same content. note: whether it was compared, and with what result."""

    folder: Path
    new: bool
    note: str


def check_format(name: str) -> None:
    """Raises ConfigError, naming the nearest, if proxies cannot be exported to this format."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        remedy = f"Did you mean '{near[0]}'?" if near else f"Known formats: {', '.join(FORMATS)}. Mixtures are exported by `mixopt export`."
        raise ConfigError(f"Proxies have no format '{name}'.", remedy)


def default_folder(store: Path, record: TrialRecord) -> Path:
    """Where a proxy goes if nobody says where: `proxies/` in the output folder, named by size and trial."""
    return store / "proxies" / f"{record.trial.source.size}-{record.trial.trial_id[:8]}"


def export_proxy(
    store: Path,
    record: TrialRecord,
    target: Path,
    metrics: Mapping[str, str],
    mixture: str,
    verify: bool | None = None,
    with_tokenizer: bool = True,
) -> ExportedProxy:
    """Writes the proxy of a trained trial as a folder for `AutoModelForCausalLM.from_pretrained`.

    Args:
        store: output folder that holds the trial.
        metrics: evaluation key -> name, for the card.
        mixture: how the card calls the trial's mixture.
        verify: compare logits with transformers; None: if it is installed.
        with_tokenizer: write the tokenizer too.

    Raises:
        ConfigError: `target` holds something else or cannot be made, or the comparison is asked for and transformers is not installed.
        DataError: weights or tokenizer are missing, damaged or of another proxy; or `target` holds this proxy, was to be compared, and has changed.
        RunError: loaded by transformers, its logits are others. Nothing is left behind then.
    """
    can_compare = find_spec("transformers") is not None
    if verify and not can_compare:
        raise ConfigError("--verify needs the transformers library.", f"{INSTALL} Or leave the option out.")
    trial = record.trial
    config, window = proxy_of(trial), int(trial.recipe["window"])
    weights_path = _weights_path(store, trial)
    tokenizer = _tokenizer(store, trial.tokenizer_hash) if with_tokenizer else None
    facts = {
        "layout": LAYOUT_VERSION,
        "weights": hashlib.sha256(weights_path.read_bytes()).hexdigest(),
        "tokenizer": tokenizer.hash if tokenizer else None,
    }
    if _holds(target, facts):
        note = "The folder holds this proxy already."
        if verify:
            note += " " + _compared_again(target, config, _state(config, weights_path), window)
        return ExportedProxy(target, new=False, note=note)
    state = _state(config, weights_path)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    _empty_folder(temporary)
    try:
        _write_model(temporary, config, state, window, tokenizer)
        compared = can_compare and verify is not False
        note = _compared(temporary, config, state, window) if compared else "Its logits have not been compared with the proxy's."
        (temporary / "README.md").write_text(model_card(record, config, metrics, mixture, tokenizer is not None, note), encoding="utf-8")
        body = {**facts, "trial": trial.spec(), "outcome": record.outcome.to_json() if record.outcome else None}
        body |= {"comparison": note, "made_by": code_version()}
        (temporary / FACTS_NAME).write_text(json.dumps(body, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not can_compare and verify is None:
        note += f" That needs transformers: {INSTALL}"
    return ExportedProxy(target, new=True, note=note)


def _empty_folder(path: Path) -> None:
    """Raises ConfigError if there can be none."""
    try:
        shutil.rmtree(path, ignore_errors=True)  # of a killed process that had our number
        path.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be written: {error.strerror}.", "Name another folder with --out.") from error


def _holds(target: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the folder holds this proxy; False: there is none, or it is empty.

    Raises:
        ConfigError: it holds something else.
    """
    if target.is_dir() and not any(target.iterdir()):
        return False
    if not target.exists():
        return False
    try:
        held = json.loads((target / FACTS_NAME).read_text(encoding="utf-8"))
        if all(held[name] == value for name, value in facts.items()):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not one of ours, or not whole
    what = "holds something else" if target.is_dir() else "is a file"
    raise ConfigError(f"{target} {what}.", "Name another folder with --out, or remove that one.")


def _weights_path(store: Path, trial: Trial) -> Path:
    trial_id = trial.trial_id
    path = TrialFolder(store, trial_id).weights_path
    if trial.source.evaluator == "ensemble":
        raise ConfigError(
            f"Trial {trial_id[:8]} is an ensemble: it averages the probabilities of its components and has no weights of its own.",
            "Export its components one by one, or the merged trial of the same mixture.",
        )
    if trial.source.evaluator == "merged" and not path.exists():
        write_merge(trial, store)
    if not path.exists():
        raise DataError(
            f"The weights of trial {trial_id} are gone: {path} does not exist.",
            "Only its losses are in the record. Name another trial, or search into another `output` to train it anew.",
        )
    return path


def _state(config: ProxyConfig, weights_path: Path) -> dict[str, Tensor]:
    """The weights, once it is sure that they are those of this shape."""
    from proxy_models.checkpoint import DamagedCheckpoint, load_checkpoint
    from proxy_models.model import PackedProxy

    try:
        state = load_checkpoint(weights_path).part("model")
        PackedProxy(config, [0], draw=False).load_member_state(0, state)
    except (DamagedCheckpoint, ValueError) as error:
        raise DataError(f"The weights cannot be used: {error}", "Name another trial.") from error
    return state


def _tokenizer(store: Path, tokenizer_hash: str) -> CorpusTokenizer:
    """The tokenizer that the trial was trained with.

    Raises:
        DataError: the output folder holds another one by now, or none.
    """
    hint = "`--no-tokenizer` exports the weights without it."
    try:
        manifest = Manifest.load(store / "tokens")
        tokenizer = load_tokenizer(manifest.root / manifest.tokenizer_path)
    except (ConfigError, DataError) as error:
        raise DataError(f"The tokenizer of the trial is missing: {error.message}", hint) from error
    if tokenizer.hash != tokenizer_hash:
        raise DataError(f"{tokenizer.path} is not the tokenizer that the trial was trained with ({tokenizer_hash[:12]}…).", hint)
    return tokenizer


def _write_model(folder: Path, config: ProxyConfig, state: Mapping[str, Tensor], window: int, tokenizer: CorpusTokenizer | None) -> None:
    from safetensors.torch import save_file

    from proxy_models.transformers_layout import transformers_layout

    end_id = tokenizer.end_id if tokenizer else None
    architecture, tensors = transformers_layout(config, state, window, end_id)
    _write_json(folder / "config.json", architecture)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # Files of safetensors are the owner's alone by default; the others of the folder follow the umask.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode & 0o777)
    if tokenizer is None:
        return
    _write_json(folder / "generation_config.json", {"bos_token_id": end_id, "eos_token_id": end_id, "pad_token_id": end_id})
    shutil.copyfile(tokenizer.path, folder / "tokenizer.json")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.end_token,
            "eos_token": tokenizer.end_token,
            "pad_token": tokenizer.end_token,
            "model_max_length": window,
            "clean_up_tokenization_spaces": False,
            # Text is text: the characters of the end token are not the end token, as in training.
            "split_special_tokens": True,
        },
    )


def _write_json(path: Path, body: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def _compared(folder: Path, config: ProxyConfig, state: Mapping[str, Tensor], window: int) -> str:
    from workers.proxy_comparison import compare

    comparison = compare(folder, config, state, window)
    if not comparison.equal:
        raise RunError(f"The exported proxy is not the same model. {comparison.sentence}", "This is a fault of mixopt's; please report it.")
    return comparison.sentence


def _compared_again(folder: Path, config: ProxyConfig, state: Mapping[str, Tensor], window: int) -> str:
    """Of a folder that was exported earlier; its files may have changed since."""
    from workers.proxy_comparison import compare

    remedy = "Remove that folder and export the proxy again."
    try:
        comparison = compare(folder, config, state, window)
    except Exception as error:  # whatever transformers finds wrong with the files
        raise DataError(f"{folder} cannot be loaded: {error}", remedy) from error
    if not comparison.equal:
        raise DataError(f"{folder} is no longer the proxy that was exported. {comparison.sentence}", remedy)
    return comparison.sentence
