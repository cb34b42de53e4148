"""Run the teacher once and keep what it said: ``python precompute_embeddings.py -c laptop``."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["precompute", *sys.argv[1:]]))
