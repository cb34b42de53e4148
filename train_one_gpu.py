"""Train one student stage, or all of them, from a cache on one GPU.

``python train_one_gpu.py --stage encoder -c laptop``; ``--stage all`` runs every student stage
that is not fresh, and the evaluation. Other options are those of ``efficient-medsam2 train``.
"""

import argparse
import sys
from collections.abc import Sequence

from pipeline.cli import main

_STAGES = ("encoder", "memory", "finetune", "baseline", "all")


def train_one_gpu(arguments: Sequence[str]) -> int:
    """Hand ``--stage`` and every other option over to the command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="train_one_gpu.py", description=__doc__, allow_abbrev=False, add_help=False
    )
    parser.add_argument("--stage", choices=_STAGES)
    known, others = parser.parse_known_args(arguments)
    if known.stage is None:
        asks_for_help = {"-h", "--help"} & set(others)
        parser.print_help(sys.stdout if asks_for_help else sys.stderr)
        return 0 if asks_for_help else 2
    if known.stage == "all":
        return main(["run", "--from", "encoder", *others])
    return main(["train", known.stage, *others])


if __name__ == "__main__":
    sys.exit(train_one_gpu(sys.argv[1:]))
