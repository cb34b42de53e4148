"""The command line: help that teaches, exit codes, and commands that can be typed again."""

import errno
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import train_one_gpu
from cache.errors import CacheSpaceError
from efficient_medsam2.errors import DataError, MissingExtraError
from pipeline.cli import main
from pipeline.errors import ArtifactError, ConfigError, RunInterruptedError
from pipeline.options import Invocation, Percentage
from pipeline.program import program
from stages.errors import QualityGateError


def every_command(group: click.Group, path: tuple[str, ...] = ()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


@pytest.fixture
def failing():
    """Add a command to the program that raises what it is told to."""
    box: list[BaseException] = []

    @click.command()
    def fail() -> None:
        raise box[0]

    program.add_command(fail)
    yield box
    del program.commands["fail"]


@pytest.mark.parametrize("path", list(every_command(program)), ids=" ".join)
def test_every_help_says_what_it_does_and_gives_an_example(path):
    result = CliRunner().invoke(program, [*path, "--help"])
    assert result.exit_code == 0
    if path != ("cache",):
        assert f"\n  efficient-medsam2 {' '.join(path)}" in result.output
    assert "\b" not in result.output


@pytest.mark.parametrize("path", [("precompute",), ("train",), ("run",), ("evaluate",), ("plan",)])
def test_commands_with_a_config_take_it_the_same_way(path):
    text = CliRunner().invoke(program, [*path, "--help"]).output
    assert "-c, --config" in text
    assert "--set KEY=VALUE" in text


HEAVY = ("torch", "numpy", "pydantic", "yaml", "zarr", "pyarrow", "cache", "stages")


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.cli import main; main(['--help']); main(['cache', '--help']); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    for path in every_command(program):
        if len(path) == 1 or path[0] == "cache":
            assert f"\n  {path[-1]} " in done.stdout


def test_until_main_is_called_nothing_is_imported_that_ctrl_c_could_hit():
    code = (
        "import sys; before = set(sys.modules); import pipeline.cli; "
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(tops - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['pipeline']\n"


@pytest.mark.parametrize("module", ["click", "pipeline.program", "pipeline.config", "torch"])
def test_ctrl_c_during_an_import_ends_quietly(module):
    """The interrupt comes where the import of a module begins."""
    code = f"""
import os, signal, sys
from pipeline.cli import main

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupts())
sys.exit(main(["plan", "-c", "phantom", "--set", "a b=1"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stdout == ""
    assert done.stderr.lstrip() == (  # click ends the line of a prompt
        "error: interrupted. The same command again: "
        "efficient-medsam2 plan -c phantom --set 'a b=1'\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("bad key"), 2, "bad key"),
        (DataError("x.nii: unreadable"), 3, "x.nii: unreadable"),
        (ArtifactError("stale"), 4, "stale"),
        (CacheSpaceError("full"), 5, "full"),
        (QualityGateError("too low"), 6, "too low"),
        (MissingExtraError("no nilearn"), 7, "no nilearn"),
        (RunInterruptedError("interrupted"), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left", "/tmp/x"), 5, "no space left at /tmp/x"),
        (MemoryError("8 GiB"), 5, "not enough memory"),
        (KeyError("x"), 1, "unexpected KeyError"),
        (FileNotFoundError("gone"), 1, "unexpected FileNotFoundError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_become_a_line_and_an_exit_code(failing, capsys, error, code, message):
    failing.append(error)
    assert main(["fail"]) == code
    printed = capsys.readouterr()
    assert printed.err.strip().startswith(f"error: {message}")
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("words", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback(failing, capsys, words):
    failing.append(KeyError("x"))
    assert main(words) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_points_to_debug(failing, capsys):
    failing.append(ZeroDivisionError("x"))
    main(["fail"])
    assert "--debug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Usage"),
        (["nonsense"], "No such command"),
        (["run"], "Missing option '-c'"),
        (["train", "decoder", "-c", "x"], "'decoder' is not one of"),
        (["run", "-c", "x", "--progress", "loud"], "'loud' is not one of"),
        (["demo", "--data", "moon"], "'moon' is not one of"),
        (["report", "/no/such/run"], "does not exist"),
        (["cache", "verify", "x", "--sample", "150%"], "'150%' is no share"),
        (["cache", "verify", "x", "--sample", "few"], "'few' is no share"),
        (["cache", "verify", "x", "--sample", "1%", "--full"], "exclude each other"),
    ],
)
def test_usage_errors_exit_2(capsys, words, message):
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.25", 0.25), ("100%", 1.0)])
def test_shares(text, share):
    assert Percentage().convert(text, None, None) == share


def test_a_command_is_typed_again_with_quotes_where_needed():
    typed = Invocation(
        command=("run",),
        options=("--from", "memory"),
        config="my configs/a.yaml",
        overrides=("finetune.label_fractions=[1.0, 0.1]",),
        progress="plain",
    )
    assert typed.text(("memory",)) == (
        "efficient-medsam2 run -c 'my configs/a.yaml' "
        "--set 'finetune.label_fractions=[1.0, 0.1]' --from memory --force memory --progress plain"
    )
    assert typed.stage_text("finetune_10", False).startswith("efficient-medsam2 train finetune -c")
    assert typed.stage_text("encoder", True).startswith("efficient-medsam2 train encoder -c")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("efficient-medsam2, version")


def test_train_one_gpu_needs_a_stage(capsys):
    assert train_one_gpu.train_one_gpu([]) == 2
    assert train_one_gpu.train_one_gpu(["--help"]) == 0
    assert "--stage" in capsys.readouterr().out


def test_train_one_gpu_hands_everything_else_over(capsys):
    assert train_one_gpu.train_one_gpu(["--stage", "encoder", "--help"]) == 0
    assert "Train one STAGE" in capsys.readouterr().out
    assert train_one_gpu.train_one_gpu(["--stage", "all", "--help"]) == 0
    assert "Run every stage" in capsys.readouterr().out
