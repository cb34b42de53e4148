"""Run commands one after the other, each killed with SIGKILL at random moments and typed again.

``python killed.py KILLS SEED COMMANDS`` with COMMANDS a JSON list of (folder to watch, arguments);
prints how often each was killed. A command is killed after it got further than the one before:
after another finished shard or another checkpoint, so every one ends, and it waits to be killed
before it is further by two, so that a killer that wakes up late still finds it at work. The
processes are forked from this one, which has imported everything and computed nothing, so starting
one is quick.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import stages.evaluate
import stages.precompute
import stages.train_teacher  # noqa: F401 - imported here so that no child has to
from pipeline.cli import main


def progress_in(folder):
    """What there is to continue from: changes with every shard and every checkpoint."""
    shards = len(list(folder.glob("ledger/*.json")))
    checkpoint = folder / "checkpoint" / "state.json"
    try:
        return shards, checkpoint.stat().st_ino, checkpoint.stat().st_mtime_ns
    except FileNotFoundError:
        return shards, 0, 0


def wait_to_be_killed():
    """Let this process get on by one shard or one checkpoint, and stop it before the next."""
    got_on = False

    def look(event, values):
        nonlocal got_on
        if event not in ("os.rename", "shutil.rmtree"):
            return
        place = Path(os.fsdecode(values[event == "os.rename"]))
        shard = place.match("ledger/*.json")
        if event == "os.rename" and not got_on:
            got_on = shard or place.name == "checkpoint"
        elif got_on and (shard or (event, place.name) in _NEXT):
            while True:
                signal.pause()

    sys.addaudithook(look)


# The next checkpoint moves the one before away; after the last, the results come and it goes.
_NEXT = {
    ("os.rename", "checkpoint.old"),
    ("os.rename", "manifest.json"),
    ("shutil.rmtree", "checkpoint"),
}


def start(arguments, *, may_end):
    child = os.fork()
    if child == 0:
        if not may_end:
            wait_to_be_killed()
        os._exit(main(arguments))
    return child


def run(folder, arguments, limit, moments):
    kills = 0
    while True:
        before = progress_in(folder)
        child = start(arguments, may_end=kills == limit)
        ended = 0
        while not ended and (kills == limit or progress_in(folder) in (before, (0, 0, 0))):
            time.sleep(0.001)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(moments.uniform(0.0, 0.1))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, arguments
            return kills
        kills += 1


if __name__ == "__main__":
    rng = random.Random(int(sys.argv[2]))
    commands = json.loads(sys.argv[3])
    print(json.dumps([run(Path(f), words, int(sys.argv[1]), rng) for f, words in commands]))
