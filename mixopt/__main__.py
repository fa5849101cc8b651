"""`python -m mixopt`: the command line where only the interpreter is known, as in a job on a Ray cluster."""

from __future__ import annotations

from mixopt.cli import main

if __name__ == "__main__":
    main()
