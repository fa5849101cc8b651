"""Training tokens per second of packs of proxies, beside what one would run without mixopt.

    python benchmarks/throughput.py [--quick] [--device cuda] [--json FILE] [--engine CHECKOUT]

Every line is a process (or one per core, all busy at once) that trains with one thread; the processes of a shape take turns, round by round, so
that what disturbs the machine disturbs all of them. Medians and ranges are over rounds.

- mixopt: `proxy_models.train.train_pack` with K members, each with its own seed and mixture of eight domains. With --engine also that of
  another checkout, as mixopt@commit.
- transformers: OLMoE of the `transformers` library in the same shape, `torch.optim.AdamW`, in the loop one would write: one process per trial. Its
  attention and experts are that library's defaults (torch's kernels: sdpa and grouped_mm). In the same environment as workers of a search; a line
  of its own says what it does without the allocator's settings, which is what one would really have. Another has torch's fused AdamW, the fastest
  eager form (measured: experts one after the other, or as batched products, are slower); and where torch does not multiply in the library that is
  fastest on this processor (`proxy_models/products.py`), one more has both: measured slower, because its products are small. On a GPU: bfloat16 autocast, eager and with torch.compile, and
  both with weights in bfloat16, which is what its grouped products want.
- data path: sampler, windows and copy alone; it is to be 20 times as fast as the training it feeds.

share_of_peak: useful FLOPs (`ProxyConfig.training_flops_per_token`, the same for all) over the median speed of a square matrix product, measured in the
same rounds: float32 2,048 on a CPU core, in the library that is fastest there, and bfloat16 8,192 on a GPU. On a CPU shares and `ratio_per_cpu_second`
are by CPU time, which other work on the machine moves least; `ratio_to_transformers` is by the clock. Both are ratios within a round, to the line
`transformers` with as many processes.

"x K=1" and "x default" are by CPU time too: to the same engine with one member, and to `transformers` without the allocator's settings.

JSON rows are written after every shape. Losses of a shape's lines after equally many steps are printed too: what is compared trains.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rows_file import why_unwritable, write_rows
from speed.corpus import TOKENS_PER_DOMAIN, write_corpus
from speed.measure import Bench, measure_pace, measure_shape
from speed.plan import LEFT_OUT, Line, Shape, available_memory_bytes, lines_for, plan_seconds, shapes_for
from speed.processes import ProcessError
from speed.table import Row, print_rows, print_targets

from proxy_models.config import SIZES
from workers.machine import cores

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MINUTES = 30


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="nano and micro at 128 and 1,024 tokens per step, 1 and 4 members: under five minutes"
    )
    parser.add_argument("--sizes", nargs="+", help="sizes of the proxy; nano micro small unless given")
    parser.add_argument("--tokens", nargs="+", type=int, help="tokens per member and step; 128 512 1024 4096 unless given")
    parser.add_argument("--windows", nargs="+", type=int, help="tokens per window; 128, and 512 at 1,024 tokens, unless given")
    parser.add_argument("--members", nargs="+", type=int, help="members of a pack; 1 4 8 16, on a GPU also 32 64, unless given")
    parser.add_argument("--implementations", nargs="+", help="lines whose name begins so, as mixopt or 'data path'; all unless given")
    parser.add_argument("--vocab", type=int, default=8192, help="entries of the vocabulary")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--seconds", type=float, help="of each turn, at least one step; 1, or 0.6 with --quick, unless given")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--engine", action="append", type=Path, default=[], help="another checkout to compare with; may be given several times"
    )
    parser.add_argument("--cores", type=int, default=cores(), help="processes busy at once; 1: single processes only")
    parser.add_argument("--corpus-tokens", type=int, default=TOKENS_PER_DOMAIN, help=argparse.SUPPRESS)  # tests take fewer
    parser.add_argument("--json", type=Path, help="also write the rows there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    gpu = options.device.startswith("cuda")
    wrong = _what_is_wrong(options)
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 2
    if gpu and not _has_gpu(options.device):
        print(f"No GPU {options.device} is here: what is asked of an H200 is not yet measured.", file=sys.stderr)
        print_targets([], gpu=True)
        return 2
    with_transformers = importlib.util.find_spec("transformers") is not None
    if not with_transformers:
        print("transformers is not installed, so its lines are left out: pip install -c constraints.txt -e '.[bench]'", file=sys.stderr)
    shapes = shapes_for(options.quick, gpu, options.sizes, options.windows, options.tokens, options.vocab)
    lines = lines_for(
        options.quick, gpu, options.members, [ROOT, *(engine.resolve() for engine in options.engine)], with_transformers, options.cores
    )
    if options.implementations:
        lines = [line for line in lines if line.implementation.startswith(tuple(options.implementations))]
    if not shapes or not lines:
        print("Nothing is left to measure: a step holds whole windows, and --implementations names what lines begin with.", file=sys.stderr)
        return 2
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mixopt-throughput-") as folder:
        domains = write_corpus(Path(folder), options.vocab, tokens=options.corpus_tokens)
        seconds = options.seconds or (0.6 if options.quick else 1.0)
        bench = Bench(ROOT, domains, options.device, options.repeats, seconds, options.cores, options.corpus_tokens)
        try:
            failures = _run(bench, shapes, lines, rows, options.json)
        except KeyboardInterrupt:
            print("\nInterrupted; the rows above are complete.", file=sys.stderr)
            return 130
    print_targets(rows, gpu)
    failures += sum(row.error is not None and not row.error.startswith(LEFT_OUT) for row in rows)
    return 0 if rows and not failures else 1


def _what_is_wrong(options: argparse.Namespace) -> str | None:
    """Of the options, in a sentence; None: nothing."""
    unknown = sorted(set(options.sizes or []) - set(SIZES))
    if unknown:
        return f"Unknown size {', '.join(unknown)}; known sizes: {', '.join(SIZES)}."
    if re.fullmatch(r"cpu|cuda(:\d+)?", options.device) is None:
        return f"--device is cpu, cuda or cuda:N, not {options.device}."
    for engine in options.engine:
        if not (engine / "proxy_models").is_dir():
            return f"{engine} holds no proxy_models; --engine is the root of a checkout."
    counts = [options.repeats, options.cores, options.vocab, *(options.members or []), *(options.tokens or []), *(options.windows or [])]
    if min(counts) < 1:
        return "Repeats, cores, vocabulary, members, tokens and windows are at least 1."
    if options.seconds is not None and not options.seconds > 0:
        return "--seconds is more than 0."
    return why_unwritable(options.json) if options.json is not None else None


def _run(bench: Bench, shapes: Sequence[Shape], lines: Sequence[Line], rows: list[Row], path: Path | None) -> int:
    """Fills `rows` shape by shape; one that fails leaves the others alone. Returns how many did."""
    failures = 0
    try:
        peak = bench.peak()
    except ProcessError as error:
        print(f"The peak is not known: {error}", file=sys.stderr)
        return 1
    predicted = plan_seconds(shapes, lines, peak, available_memory_bytes(bench.device), bench.repeats, bench.seconds, bench.cores)
    print(f"{len(shapes)} shapes, {bench.cores} cores, peak {peak / 1e9:.0f} GFLOP/s: about {predicted / 60:.0f} minutes", flush=True)
    if predicted > 60 * LIMIT_MINUTES:
        print(
            f"That is more than {LIMIT_MINUTES} minutes; --sizes, --tokens, --members, --repeats and --seconds make it shorter.", flush=True
        )
    started = time.monotonic()
    for shape in shapes:
        try:
            new = measure_shape(bench, shape, lines, peak)
        except ProcessError as error:
            print(f"\n{shape}: {error}", file=sys.stderr)
            failures += 1
            continue
        rows += new
        print_rows(shape, new)
        if path is not None:
            write_rows(path, rows)
    if bench.device == "cpu" and any(line.kind == "data path" for line in lines):
        try:
            pace = measure_pace(bench)
        except ProcessError as error:
            print(error, file=sys.stderr)
            failures += 1
        else:
            rows += pace
            print_rows(None, pace)
            if path is not None:
                write_rows(path, rows)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return failures


def _has_gpu(device: str) -> bool:
    import torch

    return torch.cuda.is_available() and (torch.device(device).index or 0) < torch.cuda.device_count()


if __name__ == "__main__":
    sys.exit(main())
