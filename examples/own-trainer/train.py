"""A trainer of one's own in plain torch: a small language model over bytes, trained on the mixture that mixopt asks for.

    python train.py REQUEST RESULT

The domains are what every Python has: its library's code, its reference manual, and two that are made up, of which one is noise.
"""

import json
import pydoc_data.topics as manual
import random
import sys
import sysconfig
from pathlib import Path

import torch

WINDOW, BATCH, WIDTH = 64, 16, 48


def texts() -> dict[str, bytes]:
    numbers, library = random.Random(0), Path(sysconfig.get_paths()["stdlib"])
    return {
        "code": b"".join(
            (library / name).read_bytes()
            for name in ("argparse.py", "ast.py", "inspect.py", "pathlib.py", "typing.py")
            if (library / name).exists()
        ),
        "manual": "\n".join(text for _, text in sorted(manual.topics.items())).encode(),
        "sums": "".join(
            f"{a} + {b} = {a + b}\n" for a, b in ((numbers.randrange(1000), numbers.randrange(1000)) for _ in range(40_000))
        ).encode(),
        "noise": numbers.randbytes(400_000),
    }


def batch(text: torch.Tensor, rows: int, draw: random.Random) -> torch.Tensor:
    return torch.stack([text[start : start + WINDOW + 1] for start in (draw.randrange(len(text) - WINDOW - 1) for _ in range(rows))]).long()


request = json.loads(Path(sys.argv[1]).read_text())
data = {name: torch.frombuffer(bytearray(text), dtype=torch.uint8) for name, text in texts().items()}
train, held_out = (
    {name: text[part(len(text))] for name, text in data.items()}
    for part in (lambda n: slice(0, n * 9 // 10), lambda n: slice(n * 9 // 10, n))
)
torch.manual_seed(request["seed"])
torch.set_num_threads(1)
draw, (weights,) = random.Random(request["seed"]), request["weights"]
embed, rnn, head = torch.nn.Embedding(256, WIDTH), torch.nn.GRU(WIDTH, WIDTH, batch_first=True), torch.nn.Linear(WIDTH, 256)
optimizer = torch.optim.AdamW([*embed.parameters(), *rnn.parameters(), *head.parameters()], lr=4e-3)


def loss_of(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(head(rnn(embed(rows[:, :-1]))[0]).flatten(0, 1), rows[:, 1:].flatten())


seen = dict.fromkeys(weights, 0)
for _ in range(request["tokens"] // (WINDOW * BATCH)):
    names = draw.choices(list(weights), list(weights.values()), k=BATCH)
    rows = torch.cat([batch(train[name], 1, draw) for name in names])
    optimizer.zero_grad()
    loss_of(rows).backward()
    optimizer.step()
    seen = {name: count + names.count(name) for name, count in seen.items()}
with torch.no_grad():
    metrics = {f"target/{name}": loss_of(batch(held_out[name], 128, random.Random(1))).item() for name in ("code", "manual")}
realized = {name: count / sum(seen.values()) for name, count in seen.items()}
Path(sys.argv[2]).write_text(json.dumps({"metrics": metrics, "weights": realized}))
