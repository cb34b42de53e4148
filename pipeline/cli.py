"""The command line ``efficient-medsam2``: every error becomes one line and an exit code."""

# ruff: noqa: D301 (click takes \b, the character, as "do not rewrap this paragraph")

import errno
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata

import click

from pipeline.ablate_command import ablate
from pipeline.convert_command import cache_convert
from pipeline.inspect_commands import cache_group, doctor, plan, status
from pipeline.model_commands import models_group
from pipeline.options import PROGRAM
from pipeline.repair_command import cache_repair
from pipeline.report_commands import demo, report
from pipeline.run_commands import evaluate, precompute, run, train
from pipeline.store_commands import cache_copy, cache_unlock

__all__ = ["main", "program"]

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PATH_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOENT", "EEXIST", "ENOTDIR", "EISDIR")
)
_EXIT_BUG, _EXIT_USAGE, _EXIT_INPUT, _EXIT_SPACE, _EXIT_INTERRUPTED = 1, 2, 4, 5, 130


def _version() -> str:
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "of a checkout that is not installed (pip install -e .)"


@click.group(PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name=PROGRAM)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def program(debug: bool) -> None:
    """Distil MedSAM2 into a small promptable segmentation model.

    Run the teacher once and cache what it says, then train a student from the cache, stage by
    stage. Every stage keeps its result in <run.dir>; a stage whose settings and inputs have not
    changed is not run again.

    \b
    efficient-medsam2 doctor                 is this machine fit?
    efficient-medsam2 models list            which teachers can be had?
    efficient-medsam2 demo --data phantom    the whole pipeline, small
    efficient-medsam2 plan -c laptop         what would run, and why
    efficient-medsam2 run -c laptop          run it

    Exit codes: 0 ok; 1 bug; 2 usage or config; 3 data; 4 cache or artifact stale or corrupt;
    5 not enough disk or memory; 6 a quality gate failed; 7 missing extra or weights;
    130 interrupted.
    """


_COMMANDS = (
    demo,
    doctor,
    plan,
    status,
    precompute,
    train,
    run,
    evaluate,
    report,
    ablate,
    cache_group,
    models_group,
)
cache_group.add_command(cache_convert)
cache_group.add_command(cache_copy)
cache_group.add_command(cache_repair)
cache_group.add_command(cache_unlock)
for _command in _COMMANDS:
    program.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; those of this process if None. ``--debug``
            may stand anywhere among them.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        result = program.main(
            [word for word in words if word != "--debug"],
            prog_name=PROGRAM,
            standalone_mode=False,
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        again = shlex.join([PROGRAM, *words])
        click.echo(f"error: interrupted. The same command again: {again}", err=True)
        return _EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the outermost frame: every error gets its line)
        if debug:
            traceback.print_exception(error)
        message, code = _explain(error)
        click.echo(f"error: {message}", err=True)
        return code
    return result if isinstance(result, int) else 0


def _explain(error: Exception) -> tuple[str, int]:
    """Give the line for the user and the exit code."""
    code = getattr(type(error), "exit_code", None)
    if isinstance(code, int):
        return str(error), code
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        # A copy names the file that is read first, and then the one that is written.
        place = error.filename2 or error.filename
        where = f" at {place}" if place else ""
        return f"no space left{where}: free some and type the same command again", _EXIT_SPACE
    if isinstance(error, OSError) and error.filename and error.errno in _PATH_ERRORS:
        return f"{error.filename}: {error.strerror} (--debug shows what wanted it)", _EXIT_USAGE
    if isinstance(error, OSError) and error.errno == errno.EIO:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}the disk gives an error: check it and its cable first", _EXIT_INPUT
    # PyTorch's class is found by name, so that a short command need not import it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = str(error).partition("\n")[0]
        return f"not enough memory: lower the stage's batch_size ({first})", _EXIT_SPACE
    return (
        f"unexpected {type(error).__name__}: {error}\n"
        f"This is a bug; the same command with --debug shows where it happened.",
        _EXIT_BUG,
    )


if __name__ == "__main__":
    sys.exit(main())
