"""The command line: which commands there are, and how a process of ours ends. What each does is in `commands/`.

Each command says in one line what it did, or in one sentence what is wrong and how to mend it.

Exit codes: 0 done, 1 error, 2 wrong option or experiment file, 3 data, 4 infeasible constraints, 5 trials could not be run, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

from mixopt import __version__
from mixopt.commands import (
    calibration,
    components,
    doctor,
    domains,
    fit,
    jobs,
    main_job,
    names,
    own_trainer,
    planning,
    proxies,
    reuse,
    review,
)
from mixopt.errors import MixoptError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Finds the mixture of training domains for a language model by training many small proxy MoE models.",
)
corpus_app = typer.Typer(no_args_is_help=True, help="Corpora that mixopt builds itself.", rich_markup_mode=None)
app.add_typer(corpus_app, name="corpus")
corpus_app.command("demo")(main_job.corpus_demo)
app.add_typer(proxies.app, name="proxies")

for command in (
    main_job.demo,
    doctor.doctor,
    domains.domains,
    main_job.prepare,
    planning.plan,
    calibration.calibrate,
    components.components,
    components.ablate,
    main_job.search,
    own_trainer.ask,
    own_trainer.tell,
    fit.fit,
    reuse.reuse,
    review.show,
    review.report,
    review.mirror,
    review.export,
    names.schema,
    jobs.submit,
    jobs.jobs,
    jobs.status,
    jobs.logs,
    jobs.stop,
):
    app.command()(command)
app.command("list")(names.list_names)

INTERRUPTED = 130
# EFBIG: a limit on the size of files (`ulimit -f`), which schedulers set.
OUTSIDE_TROUBLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EIO),
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"mixopt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before the command."""


def _interrupt(number: int, frame: object) -> None:
    """Schedulers stop jobs with SIGTERM: end as on Ctrl-C, with the record consistent and checkpoints written."""
    raise KeyboardInterrupt


def _leave(kind: str, message: str, hint: str, code: int) -> NoReturn:
    """Ends the process with what is wrong and how to mend it."""
    typer.secho(f"{kind}: {message}", fg=typer.colors.YELLOW if code == INTERRUPTED else typer.colors.RED, err=True)
    if hint:
        typer.echo(hint, err=True)
    sys.exit(code)


def main() -> None:
    """Entry point of the console script."""
    # Read by glibc and OpenMP when a process starts, so that workers started from here are single-threaded unless the user says otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _interrupt)
    again = "The same command goes on where it stopped."
    try:
        app()
    except MixoptError as error:
        _leave("interrupted" if error.exit_code == INTERRUPTED else "error", error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        # typer makes the first the second. A search turns it into SearchInterrupted itself, unless it is interrupted while it does.
        if isinstance(end, KeyboardInterrupt) or end.code == INTERRUPTED:
            _leave("interrupted", "The command was stopped.", again, INTERRUPTED)
        raise
    except OSError as error:
        # The disk is full, or a folder cannot be written: not a fault of mixopt's, wherever it happens. Others keep their traceback.
        if error.errno not in OUTSIDE_TROUBLE:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _leave("error", f"{place}{error.strerror}.", f"Free space or mend the permissions, or name another folder. {again}", 1)
