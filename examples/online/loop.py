"""A training loop of one's own whose mixture mixopt moves: a bigram model over bytes in numpy, on streams of `datasets`, mixed by tokens.

    python loop.py [CONTROLLER] [FOLDER]

Killed and started again, it goes on where it was saved; the trace in FOLDER can be replayed into any controller. The domains are what every Python has: its
library's code, its manual, and two that are made up, of which one is noise and holds nothing to learn.
"""

import pydoc_data.topics as manual
import random
import sys
import sysconfig
from pathlib import Path

import numpy as np
from datasets import Dataset

from mixopt.online import Session

TOKENS, BATCH_TOKENS, RATE = 400_000, 1_000, 20.0


def documents() -> dict[str, list[str]]:
    numbers, library = random.Random(0), Path(sysconfig.get_paths()["stdlib"])
    files = [library / name for name in ("argparse.py", "ast.py", "inspect.py", "pathlib.py", "typing.py")]
    texts = {
        "code": "".join(file.read_text(encoding="utf-8") for file in files if file.exists()),
        "manual": "\n".join(text for _, text in sorted(manual.topics.items())),
        "sums": "".join(f"{a} + {b} = {a + b}\n" for a, b in ((numbers.randrange(999), numbers.randrange(999)) for _ in range(20_000))),
        "noise": "".join(chr(numbers.randrange(32, 127)) for _ in range(200_000)),
    }
    return {name: [text[at : at + 500] for at in range(0, len(text), 500)] for name, text in texts.items()}


def stream(texts: list[str], skip: int):
    """Documents of one domain for ever, from the one that comes next."""
    epoch = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    return (row["text"] for row in epoch.repeat(None).skip(skip))


def loss_and_gradient(logits: np.ndarray, text: str) -> tuple[float, np.ndarray]:
    """Mean nats per byte, and its gradient by the logits (256, 256)."""
    ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(int)
    pairs = np.zeros_like(logits)
    np.add.at(pairs, (ids[:-1], ids[1:]), 1 / (len(ids) - 1))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-(pairs * log_probs).sum()), pairs.sum(axis=1, keepdims=True) * np.exp(log_probs) - pairs


def measured(session: Session, logits: np.ndarray, train: dict[str, str], held_out: dict[str, str]) -> dict:
    """The signals that the session's controller needs, and the held-out losses in any case."""
    targets = {name: loss_and_gradient(logits, text) for name, text in held_out.items()}
    signals = {"validation_loss": {name: loss for name, (loss, _) in targets.items()}}
    if any("products" in name or name == "influence" for name in session.needs):
        domains = {name: loss_and_gradient(logits, text)[1] for name, text in train.items()}
        signals["gradient_products"] = {t: {d: float((g * h).sum()) for d, g in domains.items()} for t, (_, h) in targets.items()}
        signals["head_products"] = signals["influence"] = signals["gradient_products"]  # all of this model is its output layer
        signals["gradient_norms"] = {name: float(np.linalg.norm(g)) for name, g in domains.items()}
        signals["target_norms"] = {name: float(np.linalg.norm(h)) for name, (_, h) in targets.items()}
    return signals


def main(controller: str = "aioli", folder: str = "runs/online") -> None:
    texts, out = documents(), Path(folder)
    train = {name: rows[: len(rows) * 9 // 10] for name, rows in texts.items()}
    held_out = {name: "".join(texts[name][len(train[name]) :][:20]) for name in ("code", "manual")}
    probes = {name: "".join(random.Random(1).sample(rows, min(len(rows), 20))) for name, rows in train.items()}
    session = Session(list(train), controller, list(held_out), tokens=TOKENS, step_tokens=BATCH_TOKENS, trace=out / "trace.jsonl")
    logits, drawn = np.zeros((256, 256)), dict.fromkeys(train, 0)
    if (out / "session.json").exists():
        session.restore(out / "session.json")
        saved = np.load(out / f"model-{session.tokens}.npz")
        logits, drawn = saved["logits"], {name: int(saved[name]) for name in drawn}
    streams = {name: stream(rows, drawn[name] % len(rows)) for name, rows in train.items()}
    while session.tokens < session.total or (session.due and session.controller.seen < session.total):
        if session.due:
            weights = session.observe(**measured(session, logits, probes, held_out))
            print(f"{session.tokens:7} tokens  " + "  ".join(f"{name} {weight:.3f}" for name, weight in weights.items()))
            # The model first, under a name that only the session saved after it asks for: a kill between the two loses nothing.
            np.savez(out / f"model-{session.tokens}.npz", logits=logits, **{name: np.array(count) for name, count in drawn.items()})
            session.save(out / "session.json")
            for old in set(out.glob("model-*.npz")) - {out / f"model-{session.tokens}.npz"}:
                old.unlink()
            continue
        gradient, tokens = np.zeros_like(logits), 0
        while tokens < BATCH_TOKENS:
            name = session.next_domain()
            text = next(streams[name])
            loss, towards = loss_and_gradient(logits, text)
            count = len(text.encode())
            gradient += count * session.loss_factor(name) * towards
            session.drew(name, count, loss)
            drawn[name], tokens = drawn[name] + 1, tokens + count
        logits -= RATE * gradient / tokens
    result = session.final().average().as_dict()
    print("trained on  " + "  ".join(f"{name} {weight:.3f}" for name, weight in result.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
