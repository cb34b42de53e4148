import json

import pytest
from PIL import Image

from benchmarks.ablations_page import main as page_main
from pipeline.ablation_plot import draw_results, panels
from pipeline.ablation_results import AblationResults, read_results, write_results
from pipeline.ablation_tables import markdown_section, table_rows, table_titles
from pipeline.errors import ArtifactError


def row(model, dsc, **more):
    return {"model": model, "dsc": dsc, "dsc_3d": dsc / 2, "nsd": dsc, "retention": dsc} | more


def results(combinations, factors=(), seeds=(0, 1), **more):
    document = {
        "title": "Memory",
        "command": "efficient-medsam2 ablate -c demo --seeds 2",
        "factors": factors,
        "seeds": seeds,
        "started_utc": "2026-01-01T00:00:00+00:00",
        "finished_utc": "2026-01-01T00:10:00+00:00",
        "wall_s": 90.0,
        "stage_seconds": {"encoder-0": 30.0, "memory-1": 60.0},
        "stage_uses": 7,
        "versions": {"torch": "2.9"},
        "context": {"data_source": "phantom", "split": "test"},
        "combinations": [
            {
                "values": values,
                "runs": [
                    {"seed": seed, "folder": f"runs/{seed}", "rows": rows}
                    for seed, rows in zip(seeds, by_seed, strict=True)
                ],
            }
            for values, by_seed in combinations
        ],
        "complete": True,
    }
    return AblationResults.model_validate(document | more)


FACTOR = {"key": "memory.enabled", "values": {"true": "true", "false": "false"}}


@pytest.fixture
def memory():
    teacher = row("teacher", 0.9)
    encoder = [row("encoder", 0.7), row("encoder", 0.72)]
    return results(
        [
            (
                {"memory.enabled": value},
                [[teacher, encoder[seed], row("finetune", dsc[seed])] for seed in (0, 1)],
            )
            for value, dsc in (("true", (0.80, 0.84)), ("false", (0.60, 0.60)))
        ],
        factors=[FACTOR],
    )


def test_a_row_for_each_value_or_one_where_the_value_makes_no_difference(memory):
    assert table_titles(memory)[:3] == ("model", "memory.enabled", "DSC")
    rows = table_rows(memory)
    assert [(each.model, each.values) for each in rows] == [
        ("teacher", ("any",)),
        ("encoder", ("any",)),
        ("finetune", ("true",)),
        ("finetune", ("false",)),
    ]
    assert rows[2].figures == ("0.820 ± 0.028", "0.410 ± 0.014", "0.820 ± 0.028", "82.0 ± 2.8", "–")
    assert rows[3].figures[0] == "0.600 ± 0.000"
    assert rows[0].seeds == 2


def test_a_section_holds_command_table_and_circumstances(memory):
    text = markdown_section(memory, plot="plots/a.png")
    assert text.startswith("## Memory\n\n```sh\nefficient-medsam2 ablate -c demo --seeds 2\n```")
    assert "| finetune | true | 0.820 ± 0.028 |" in text
    assert "2 stage runs for 7 uses, 1.5 minutes" in text
    assert "data source phantom, split test" in text
    assert "![Memory](plots/a.png)" in text
    assert "Not complete" not in text
    failure = {"values": {"memory.enabled": "true"}, "seed": 1, "error": "no space left"}
    failed = memory.model_dump() | {"complete": False, "failures": [failure]}
    text = markdown_section(AblationResults.model_validate(failed), plot=None)
    assert "Not complete" in text
    assert "Failed: memory.enabled=true, seed 1: no space left" in text


def test_bars_by_value(memory):
    ((dsc, volume),) = panels(memory)
    assert (dsc.title, dsc.groups, dsc.teacher) == ("memory.enabled", ("true", "false"), 0.9)
    assert set(dsc.series) == {"encoder", "finetune"}
    assert dsc.series["finetune"][0].mean == pytest.approx(0.82)
    assert volume.series["finetune"][1].mean == pytest.approx(0.30)


def test_bars_of_a_grid_average_the_other_key_for_each_seed():
    def run(a, b):
        return ({"a": a, "b": b}, [[row("finetune", 0.1 * int(a) + 0.01 * int(b) + s)] for s in S])

    S = (0.0, 0.2)
    grid = results(
        [run(a, b) for a in "12" for b in "34"],
        factors=[
            {"key": "a", "values": {"1": "1", "2": "2"}},
            {"key": "b", "values": {"3": "3", "4": "4"}},
        ],
    )
    (of_a, _), (of_b, _) = panels(grid)
    assert of_a.series["finetune"][0].mean == pytest.approx(0.1 + 0.035 + 0.1)
    assert of_a.series["finetune"][0].deviation == pytest.approx(0.2 / 2**0.5)
    assert of_b.series["finetune"][1].mean == pytest.approx(0.15 + 0.04 + 0.1)


def test_bars_by_share_of_the_labels_where_nothing_is_varied():
    rows = [
        row("teacher", 0.9),
        row("finetune", 0.8, label_fraction=1.0),
        row("finetune_10", 0.7, label_fraction=0.1),
        row("baseline", 0.6, label_fraction=1.0),
        row("baseline_10", 0.4, label_fraction=0.1),
    ]
    ((dsc, _),) = panels(results([({}, [rows])], seeds=(0,)))
    assert dsc.groups == ("100 %", "10 %")
    assert [each.mean for each in dsc.series["baseline"]] == [0.6, 0.4]
    assert dsc.series["finetune"][0].deviation is None


def test_the_plot_is_a_picture(memory, tmp_path):
    (tmp_path / "plot.png").write_bytes(draw_results(memory))
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > picture.height > 100
    assert draw_results(results([])) is None


def test_results_come_back_as_they_were(memory, tmp_path):
    path = tmp_path / "deep" / "results.json"
    write_results(path, memory)
    assert read_results(path) == memory
    (tmp_path / "other.json").write_text('{"figures": 1}')
    assert read_results(tmp_path / "other.json") is None
    data = json.loads(path.read_text())
    data["combinations"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"damaged: combinations.*efficient-medsam2 ablate"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        read_results(path)


def test_the_page_is_written_from_the_files(memory, tmp_path, capsys):
    write_results(tmp_path / "memory.json", memory)
    (tmp_path / "other.json").write_text("{}")
    page = tmp_path / "docs" / "ablations.md"
    files = [str(tmp_path / name) for name in ("memory.json", "other.json")]
    page_main([*files, "--out", str(page)], standalone_mode=False)
    text = page.read_text()
    assert text.count("\n## ") == 1
    assert "![Memory](ablations/memory.png)" in text
    assert (page.parent / "ablations" / "memory.png").is_file()
    assert "other.json holds no ablation" in capsys.readouterr().err
