"""What an experiment file says of the corpus: domains, targets, where their documents are, and the tokenizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mixopt.addresses import is_url, without_secret
from mixopt.config_model import Model, Name, WholeCount
from mixopt.groups.config import Bounds
from mixopt.quantities import COUNT_THEM, parse_bytes, parse_token_count, parse_whole_bytes

ByteCount = Annotated[float, BeforeValidator(parse_bytes), Field(gt=0, allow_inf_nan=False)]
WholeByteCount = Annotated[int, BeforeValidator(parse_whole_bytes), Field(gt=0, lt=2**53)]
TokenCount = Annotated[float | Literal["count"] | None, BeforeValidator(parse_token_count)]
Kind = Literal["text", "completion"]
Paths = Annotated[
    tuple[Annotated[str, AfterValidator(lambda value: _named(without_secret(value)))], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]


class HubConfig(Model):
    """Documents from a data set of the Hugging Face hub, streamed. No code of the data set is ever run."""

    dataset: str = Field(min_length=1, description="Its id, as organization/name; or an absolute folder laid out as one.")
    config: str | None = Field(None, description="Its configuration, such as sample-10BT; default: the only one, or its default.")
    split: str = Field("train", min_length=1)
    revision: str | None = Field(
        None, description="Branch, tag or commit; default: the main branch. The commit found first is kept for this output."
    )


class DomainConfig(Model):
    """One training domain: where its documents are, and how many tokens of it the target corpus holds."""

    name: Name
    path: Paths | None = Field(
        None,
        description="Training documents: file, glob or URL (s3://, gs://, hf://, https://...) of json, jsonl, Parquet, Arrow or text, "
        "or a list of them; json and text also as .gz and .zst.",
    )
    hub: HubConfig | None = Field(None, description="Training documents from the Hugging Face hub, instead of `path`.")
    group: str = Field(
        "", description="Path of levels such as web, web/science or web/science/high; weights are shown per level, see `groups`."
    )
    text_column: str = Field("text", description="Column of files and data sets with rows that holds the document.")
    prompt_column: str | None = Field(
        None, description="With `completion_column`: fine-tuning data; prompts are seen, and only completions are trained on and scored."
    )
    completion_column: str | None = None
    valid: Paths | None = Field(None, description="Held-out documents; default: a share of the documents, split by hash.")
    held_out: float = Field(0.02, gt=0, lt=0.5, description="Share of documents held out when `valid` is not given.")
    max_documents: WholeCount | None = Field(None, description="Prepare the first so many documents only.")
    max_bytes: WholeByteCount | None = Field(None, description="Prepare the first documents only, up to so many bytes of text, as 2GB.")
    tokens: TokenCount = Field(
        None, description="Tokens of this domain in the target corpus, as 3e9 or 3B; `count`: the prepared training text is all there is."
    )
    bytes: ByteCount | None = Field(
        None, description="Instead of `tokens`: bytes of text (not compressed) in the target corpus, as 4.2TB; tokens are then estimated."
    )
    repeats: float = Field(1.0, ge=1, description="How many times the tokens hold every document, if the inventory repeats them already.")
    revision: str | None = Field(
        None, min_length=1, description="With `trainer`: which state of the documents this is; another one makes other trials."
    )
    max_epochs: float = Field(4.0, gt=0, description="How often the target run may repeat this domain's unique documents.")
    bounds: Bounds = Field((0.0, 1.0), description="Least and largest weight.")

    @model_validator(mode="after")
    def _source(self) -> DomainConfig:
        if self.path is not None and self.hub is not None:  # that one is given is the whole file's business: a trainer knows its own data
            raise ValueError(f"domain '{self.name}' has both path and hub; say where its documents are, with one of them")
        # `text` is the default, which resolved files write out.
        _one_kind(f"domain '{self.name}'", self.prompt_column, self.completion_column, self.text_column not in ("text", None))
        capped = self.max_documents is not None or self.max_bytes is not None
        if self.hub is not None and not capped:
            raise ValueError(f"domain '{self.name}' reads from the hub without a limit; add max_documents or max_bytes, as 2GB")
        if (self.tokens is None) == (self.bytes is None):
            found = "neither tokens nor bytes" if self.tokens is None else "both tokens and bytes"
            raise ValueError(f"domain '{self.name}' has {found}; say how much of it the target corpus holds, with one of them")
        if self.tokens == COUNT_THEM and capped:
            raise ValueError(
                f"domain '{self.name}' has tokens: count, which counts what is prepared, and a cap on that; give tokens or bytes instead"
            )
        return self

    @property
    def kind(self) -> Kind:
        return "completion" if self.prompt_column is not None else "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The text column, or prompt and completion."""
        return _columns(self.prompt_column, self.completion_column, self.text_column)

    @field_validator("group")
    @classmethod
    def _path(cls, value: str) -> str:
        if value and not all(part.strip() for part in value.split("/")):
            raise ValueError("a level has no name; write levels as web/science/high, without a slash at either end")
        return value


class TargetConfig(Model):
    """Held-out text, or prompts with completions, that the mixture should serve."""

    name: Name
    path: Paths | None = Field(None, description="Files, globs or URLs, as for domains.")
    hub: HubConfig | None = Field(None, description="Documents or pairs from the Hugging Face hub, instead of `path`.")
    max_documents: WholeCount | None = Field(None, description="Score the first so many documents or pairs only.")
    prompt_column: str | None = Field(None, description="With `completion_column`: only the completion is scored, after the prompt.")
    completion_column: str | None = None
    text_column: str | None = Field(None, description="For plain text targets.")
    weight: float = Field(1.0, gt=0, description="Weight in the objective.")

    @model_validator(mode="after")
    def _kind(self) -> TargetConfig:
        _one_source(f"target '{self.name}'", self.path, self.hub)
        _one_kind(f"target '{self.name}'", self.prompt_column, self.completion_column, self.text_column is not None)
        return self

    @property
    def kind(self) -> Kind:
        return "completion" if self.prompt_column is not None else "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The text column, or prompt and completion."""
        return _columns(self.prompt_column, self.completion_column, self.text_column or "text")


def _one_kind(owner: str, prompt: str | None, completion: str | None, names_text: bool) -> None:
    if (prompt is None) != (completion is None):
        raise ValueError(f"{owner} names only one of prompt_column and completion_column; name both")
    if prompt is not None and names_text:
        raise ValueError(f"{owner} names both text_column and prompt_column; choose one kind")


def _columns(prompt: str | None, completion: str | None, text: str) -> tuple[str, ...]:
    return (prompt, completion) if prompt is not None and completion is not None else (text,)


def _one_source(owner: str, path: tuple[str, ...] | None, hub: HubConfig | None) -> None:
    if (path is None) == (hub is None):
        found = "neither path nor hub" if path is None else "both path and hub"
        raise ValueError(f"{owner} has {found}; say where its documents are, with one of them")


class TokenizerConfig(Model):
    """A byte-level BPE trained on the corpus, or one loaded from a file or the Hugging Face hub."""

    path: str | None = Field(None, description="A tokenizer.json; default: train one.")
    hub: str | None = Field(None, description="Repository of the Hugging Face hub with a tokenizer.json, instead of `path`.")
    revision: str | None = Field(None, description="Branch, tag or commit of `hub`; the commit found first is kept for this output.")
    vocab_size: int = Field(8192, ge=512, le=65536, description="Entries of the trained tokenizer; 4k to 8k is best for proxies.")
    sample_bytes: WholeCount = Field(40_000_000, description="Text used for training it, drawn evenly from the domains.")

    @model_validator(mode="after")
    def _one(self) -> TokenizerConfig:
        if self.path is not None and self.hub is not None:
            raise ValueError("both path and hub are given; choose one")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub, which is not given")
        if self.path is not None and is_url(self.path):
            raise ValueError(f"path is the address {self.path}; name a file of this machine, or a repository under hub")
        return self


def _named(location: str) -> str:
    if not location.strip():
        raise ValueError("no path; name a file, a pattern or an address")
    return location
