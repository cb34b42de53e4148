import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from tests.end_to_end import small


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Networks as small as these lose more to waiting threads than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return small.save_tiny_teacher(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, teacher, _one_thread):
    """The folder of a finished run that no test may change."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(small.words(["run"], small.settings(folder, teacher))) == 0
    return folder


@dataclass
class Run:
    """The command line on one run folder, in this process."""

    folder: Path
    values: dict
    capture: pytest.CaptureFixture = field(repr=False)

    @property
    def cache(self):
        return Path(self.values.get("cache.path", self.folder / "cache"))

    def __call__(self, *command, **changes):
        """Exit code; settings are named with ``__`` for the dot."""
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        self.capture.readouterr()
        code = main(small.words(command, self.values | changed))
        self.out, self.err = self.capture.readouterr()
        return code

    def states(self, **changes):
        """Stage → (state, reasons), as ``status`` tells."""
        assert self("status", "--json", **changes) == 0
        stages = json.loads(self.out)["stages"]
        return {stage["name"]: (stage["state"], tuple(stage["reasons"])) for stage in stages}

    def not_fresh(self, **changes):
        return {name for name, (state, _) in self.states(**changes).items() if state != "fresh"}


@pytest.fixture
def finished_run(finished, teacher, tmp_path, capsys):
    """A copy of the finished run, to change."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    return Run(folder, small.settings(folder, teacher), capsys)


@pytest.fixture
def new_run(teacher, tmp_path, capsys):
    """A run that has not begun."""
    folder = tmp_path / "run"
    return Run(folder, small.settings(folder, teacher), capsys)
