"""--workers and --scheduler: how they are typed, and what they become."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from pipeline.cluster import open_cluster
from pipeline.options import ClusterChoice, Invocation, cluster_options
from stages.cluster import Cluster
from stages.errors import ClusterError
from tests.end_to_end.small import ROOT


@click.command()
@cluster_options
def command(cluster):
    click.echo(repr(cluster))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), ClusterChoice()),
        (("--workers", "3"), ClusterChoice(workers=3)),
        (("--scheduler", "tcp://a:1"), ClusterChoice(scheduler="tcp://a:1")),
    ],
)
def test_both_options_come_as_one_choice_and_back_as_words(words, wanted):
    done = CliRunner().invoke(command, words)
    assert done.output == f"{wanted!r}\n"
    assert wanted.words() == list(words)
    again = Invocation(command=("precompute",), config="laptop", cluster=wanted).text()
    assert again == " ".join(["efficient-medsam2 precompute -c laptop", *words])


def test_both_options_at_once_are_refused():
    done = CliRunner().invoke(command, ["--workers", "1", "--scheduler", "tcp://a:1"])
    assert done.exit_code == 2
    assert "--workers and --scheduler exclude each other" in done.output
    assert CliRunner().invoke(command, ["--workers", "0"]).exit_code == 2


def test_nothing_asked_nothing_opened():
    with open_cluster(ClusterChoice(), threads=None, note=print) as cluster:
        assert cluster is None


def test_workers_share_cores_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setattr("pipeline.cluster._cores", lambda: 8)
    opened = open_cluster(ClusterChoice(workers=4), threads=None, note=print)
    with opened as cluster:
        assert isinstance(cluster, Cluster)
        assert cluster._settings.threads == 2
        assert cluster._settings.gpus == ("2", "5")
    with open_cluster(ClusterChoice(workers=16), threads=3, note=print) as cluster:
        assert cluster._settings.threads == 3


@pytest.mark.parametrize(
    "address", ["nonsense", "nonsense://x", "tcp://a", "tcp://:8786", "http://a:8786", "8786", ""]
)
def test_what_is_no_address_is_refused_as_it_is_typed(address):
    done = CliRunner().invoke(command, ["--scheduler", address])
    assert done.exit_code == 2
    assert "is no address of a Dask scheduler" in done.output
    assert "tcp://10.0.0.5:8786" in done.output


@pytest.mark.parametrize(
    "address", ["tcp://10.0.0.5:8786", "tls://node-1.cluster:8786", "node_1:8786", "tcp://[::1]:1"]
)
def test_addresses_are_taken_as_they_are(address):
    done = CliRunner().invoke(command, ["--scheduler", address])
    assert done.output == f"{ClusterChoice(scheduler=address)!r}\n"


def test_a_machine_that_nobody_knows_is_said_at_once():
    choice = ClusterChoice(scheduler="tcp://no-such-machine.invalid:8786")
    with pytest.raises(ClusterError, match=r"no machine 'no-such-machine\.invalid' is known here"):
        open_cluster(choice, threads=None, note=print)


def test_without_either_option_dask_is_not_even_imported():
    code = (
        "import sys, pipeline.program, pipeline.execution, pipeline.cluster, stages.precompute, "
        "stages.evaluate, stages.convert; print({'dask', 'distributed'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
