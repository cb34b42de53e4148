"""The command line ``efficient-medsam2``: every error becomes one line and an exit code.

Nothing is imported here that takes time, so that Ctrl-C finds its handler from the first moment.
"""

import errno
import sys
from collections.abc import Sequence

__all__ = ["main"]

_PROGRAM = "efficient-medsam2"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PATH_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOENT", "EEXIST", "ENOTDIR", "EISDIR")
)
_EXIT_BUG, _EXIT_USAGE, _EXIT_INPUT, _EXIT_SPACE, _EXIT_INTERRUPTED = 1, 2, 4, 5, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; those of this process if None. ``--debug``
            may stand anywhere among them.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except KeyboardInterrupt:
        import shlex

        again = shlex.join([_PROGRAM, *words])
        print(f"error: interrupted. The same command again: {again}", file=sys.stderr)
        return _EXIT_INTERRUPTED


def _run(words: list[str]) -> int:
    import click

    from pipeline.program import program

    try:
        result = program.main(
            [word for word in words if word != "--debug"],
            prog_name=_PROGRAM,
            standalone_mode=False,
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as abort:
        raise KeyboardInterrupt from abort
    except Exception as error:  # noqa: BLE001 (the outermost frame: every error gets its line)
        if "--debug" in words:
            import traceback

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
