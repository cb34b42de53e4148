"""Start a writer, kill it with SIGKILL at a random moment, and again, until nothing is left to do.

``python killed_writers.py FOLDER SEED`` prints how many writers were killed. The first one is
killed while it creates the folder; each later one gets at least one shard further, and waits to
be killed after two, so that a killer that wakes up late still finds it at work.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from cache import CacheWriter
from tests.cache.example import SPACES, make_index, make_spec, shard_values

SHARDS_A_LIFE = 2


def entries(folder):
    return len(list(folder.glob("ledger/*.json")))


def write(folder):
    with CacheWriter.create_or_resume(folder, make_spec(), make_index()) as writer:
        missing = [(space, k) for space in SPACES for k in writer.missing_shards(space)]
        for space, k in missing[:SHARDS_A_LIFE]:
            writer.write_shard(space, k, shard_values(writer, space, k))
        while len(missing) > SHARDS_A_LIFE:
            signal.pause()
        writer.finish()


def start(folder):
    child = os.fork()
    if child == 0:
        write(folder)
        os._exit(0)
    return child


def main(folder, seed):
    moments = random.Random(seed)
    kills = 0
    while True:
        before = entries(folder) if kills else -1
        child = start(folder)
        ended = 0
        while not ended and entries(folder) <= before:
            time.sleep(0.0005)
            ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(moments.uniform(0.0, 0.03))
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            print(kills)
            return os.WEXITSTATUS(status)
        kills += 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
