"""Writers that are killed, refused, or left without room, each in a forked process.

    python -m benchmarks.faults_kills JOB,JOB FOLDER COUNT,COUNT SEED

runs jobs and prints a line of JSON on the outcomes of each; ``benchmarks.faults`` starts it. It is
a process of its own, because forking needs one without threads. Jobs: ``synthetic`` and
``precompute`` are writers killed with SIGKILL, ``full`` is a disk without room, ``two`` are two
writers at once, ``live`` are readers of a cache that is being written.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults_cache import FORMATS, Verdict, files_of, judge, write
from cache import CacheLockedError, CacheSpaceError
from cache.layout import HEADER_NAME

__all__ = ["JOBS"]

Work = Callable[[], object]

_REFUSED, _FULL, _FAILED = 40, 50, 1


def _start(work: Work) -> int:
    """Do something in a forked process; gives its id."""
    child = os.fork()
    if child:
        return child
    code = _FAILED
    try:
        work()
        code = 0
    except CacheLockedError:
        code = _REFUSED
    except CacheSpaceError:
        code = _FULL
    except BaseException as error:  # noqa: BLE001 - a forked process must not go on as its parent
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def _wait(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _seconds(work: Work) -> float:
    begun = time.perf_counter()
    code = _wait(_start(work))
    if code:
        raise RuntimeError(f"a writer that nobody disturbs ended with {code}")
    return time.perf_counter() - begun


def _lost(path: Path, before: dict[str, tuple[int, int, int]]) -> int:
    now = files_of(path) if (path / HEADER_NAME).is_file() else {}
    return sum(now.get(name) != seen for name, seen in before.items())


def _killed(
    work: Callable[[Path], object],
    check: Callable[[Path, bool], Verdict],
    folder: Path,
    count: int,
    rng: random.Random,
) -> Counter[str]:
    """Kill writers, each at a random moment, the next one going on, until so many were killed."""
    found: Counter[str] = Counter()
    seconds = _seconds(lambda: work(folder / "whole"))
    kills, number = 0, 0
    while kills < count:
        number += 1
        path = folder / str(number)
        before: dict[str, tuple[int, int, int]] = {}
        while True:
            child = _start(lambda path=path: work(path))  # type: ignore[misc]
            ended = False
            if kills < count:
                time.sleep(rng.uniform(0.0, seconds))
                ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
                if not ended:
                    os.kill(child, signal.SIGKILL)
            code = _wait(child)
            found["lost"] += _lost(path, before)
            if code not in (0, -signal.SIGKILL):
                found["silent"] += 1
                print(f"{path.name}: a writer after a kill ended with {code}", file=sys.stderr)
                break
            kills += code < 0
            verdict = check(path, code == 0)
            outcome = verdict.outcome
            if code == 0 and outcome != "survived":
                outcome = "silent"  # it said that all is well
            if code < 0 or outcome == "silent":
                found[outcome] += 1
            _tell(f"{path.name} after kill {kills}", verdict, outcome)
            before = files_of(path) if (path / HEADER_NAME).is_file() else {}
            if code == 0:
                break
        shutil.rmtree(path)
    return found


def _tell(what: str, verdict: Verdict, outcome: str) -> None:
    if outcome == "silent":
        print(f"{what}: {verdict.wrong or verdict.named}", file=sys.stderr)


def _synthetic(folder: Path, count: int, seed: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for number, store in enumerate(FORMATS):
        part = folder / store
        part.mkdir()
        digest = write(part / "truth", store)

        def check(path: Path, complete: bool, digest: str = digest) -> Verdict:
            return _judge_unfinished(path, digest if complete else None)

        share = count // 2 + (number < count % 2)
        found += _killed(
            lambda path, store=store: write(path, store),  # type: ignore[misc]
            check,
            part,
            share,
            random.Random(seed + number),
        )
    return found


def _judge_unfinished(path: Path, digest: str | None) -> Verdict:
    if not (path / HEADER_NAME).is_file():
        return Verdict()  # killed before there was a cache
    return judge(path, digest=digest)


def _full(folder: Path, count: int, seed: int) -> Counter[str]:
    """A limit on the size of files, below that of one or several kinds of file of the cache."""
    found: Counter[str] = Counter()
    rng = random.Random(seed)
    truth = {store: write(folder / store, store) for store in FORMATS}
    for number in range(count):
        store = FORMATS[number % 2]
        path = folder / str(number)
        sizes = sorted({f.stat().st_size for f in (folder / store).rglob("*") if f.is_file()})
        limit = rng.choice(sizes[:-1]) - rng.choice((0, 1))

        def work(path: Path = path, store: object = store, limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            write(path, store)  # type: ignore[arg-type]

        code = _wait(_start(work))
        verdict = _judge_unfinished(path, truth[store] if code == 0 else None)
        before = files_of(path) if (path / HEADER_NAME).is_file() else {}
        if code not in (0, _FULL):
            verdict.wrong.append(f"a writer without room ended with {code}")
        digest = write(path, store)
        if digest != truth[store]:
            verdict.wrong.append("another digest after there was room")
        found["lost"] += _lost(path, before)
        found[verdict.outcome] += 1
        _tell(f"no file above {limit} bytes", verdict, verdict.outcome)
        shutil.rmtree(path)
    return found


def _two(folder: Path, count: int, seed: int) -> Counter[str]:
    """Two writers at once: one is refused by name, or comes when the other is done."""
    found: Counter[str] = Counter()
    rng = random.Random(seed)
    truth = {store: write(folder / store, store) for store in FORMATS}
    seconds = _seconds(lambda: write(folder / "timed", "zarr"))
    for number in range(count):
        store = FORMATS[number % 2]
        path = folder / str(number)

        def work(path: Path = path, store: object = store) -> None:
            write(path, store)  # type: ignore[arg-type]

        children = [_start(work)]
        time.sleep(rng.uniform(0.0, seconds))
        children.append(_start(work))
        codes = [_wait(child) for child in children]
        verdict = judge(path, digest=truth[store])
        if 0 not in codes or any(code not in (0, _REFUSED) for code in codes):
            verdict.wrong.append(f"two writers ended with {codes}")
        if verdict.named:
            verdict.wrong.append("both were content, and the cache is not")
        found["detected" if _REFUSED in codes and not verdict.wrong else verdict.outcome] += 1
        _tell("two writers", verdict, verdict.outcome)
        shutil.rmtree(path)
    return found


def _live(folder: Path, count: int, seed: int) -> Counter[str]:
    """Readers that open a cache while a writer is at work see finished rows, and all of them."""
    found: Counter[str] = Counter()
    while found.total() < count:
        path = folder / str(found.total())
        store = FORMATS[(seed + found.total()) % 2]
        child = _start(lambda path=path, store=store: write(path, store))  # type: ignore[misc]
        before = 0
        while found.total() < count:
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            if (path / HEADER_NAME).is_file():
                verdict = judge(path, digest=None, live=True)
                there = sum(verdict.finished.values())
                if there < before:
                    found["lost"] += before - there
                before = there
                found[verdict.outcome] += 1
                _tell("a live cache", verdict, verdict.outcome)
            if ended:
                break
        _wait(child)
    return found


def _precompute(folder: Path, count: int, seed: int) -> Counter[str]:
    from benchmarks.faults_precompute import Precompute

    job = Precompute(folder, prepare=lambda work: _seconds(work))
    return _killed(job.work, job.check, folder, count, random.Random(seed))


JOBS: dict[str, Callable[[Path, int, int], Counter[str]]] = {
    "synthetic": _synthetic,
    "precompute": _precompute,
    "full": _full,
    "two": _two,
    "live": _live,
}


def main() -> None:
    jobs, folder, counts, seed = sys.argv[1:]
    for job, count in zip(jobs.split(","), counts.split(","), strict=True):
        own = Path(folder) / job
        own.mkdir()
        found = JOBS[job](own, int(count), int(seed))
        told = {name: found[name] for name in ("survived", "detected", "silent", "lost")}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
