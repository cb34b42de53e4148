import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from efficient_medsam2.synthetic.phantom import PHANTOM_OBJECTS, phantom
from pipeline.artifacts import Manifest, describe_files, fingerprint, write_manifest
from pipeline.errors import ArtifactError
from pipeline.report import summary_table, write_report
from pipeline.report_records import SEED_FIGURES

FIGURES = {
    "teacher": (0.853, 0.671, 0.91, 5_250_000, 0.57, 1.9, 9.4),
    "baseline": (0.741, 0.402, 0.80, 2_700_000, 0.08, 0.12, 2.2),
    "encoder": (0.829, 0.389, 0.88, 2_700_000, 0.08, 0.12, 2.3),
    "memory": (0.831, 0.612, 0.88, 2_700_000, 0.08, 0.12, 2.2),
    "finetune": (0.836, 0.634, 0.89, 2_700_000, 0.08, 0.12, 2.2),
    "baseline_10": (0.702, 0.370, 0.77, 2_700_000, 0.08, 0.12, 2.2),
    "finetune_10": (0.824, 0.601, 0.87, 2_700_000, 0.08, 0.12, 2.2),
}
VALIDATION = {"encoder": (0.264, 0.812), "memory": (0.812, 0.818), "finetune": (0.818, 0.822)}
VOID = {"area", "base", "br", "img", "input", "link", "meta", "source"}


def row(model: str) -> dict:
    dsc, volume, nsd, params, gflop, tracked, ms = FIGURES[model]
    teacher = FIGURES["teacher"]
    return {
        "model": model,
        "title": model.replace("_10", ", 10 % of labels"),
        "dsc": dsc,
        "dsc_3d": volume,
        "nsd": nsd,
        "retention": dsc / teacher[0],
        "retention_3d": volume / teacher[1],
        "params": params,
        "gflop": gflop,
        "gflop_tracked": tracked,
        "gmac": gflop / 2,
        "ms_per_slice": ms,
        "label_fraction": 0.1 if model.endswith("_10") else 1.0,
        "per_structure": {
            "organ": {"dsc": dsc, "nsd": nsd, "dsc_3d": volume, "slices": 12, "tracks": 3},
            "vessel": {"dsc": dsc / 2, "nsd": nsd, "dsc_3d": None, "slices": 5, "tracks": 0},
        },
    }


@dataclass
class RunFolder:
    """Writes what the stages of a run leave behind."""

    path: Path
    rows: list[dict] = field(default_factory=lambda: [row(model) for model in FIGURES])
    samples: int = 1
    context: dict = field(
        default_factory=lambda: {
            "split": "test",
            "shared_split": False,
            "cases": 2,
            "objects": 9,
            "slices": 17,
            "tracks": 3,
            "track_length": 5,
            "nsd_tolerance_mm": 2.0,
            "device": "cpu",
            "cpu": "some processor",
            "threads": 2,
            "cache_bytes_per_slice": 131_072,
            "cache_bytes": 9_000_000,
            "teacher": {"name": "scratch", "weights_sha256": "ab" * 32},
            "backbone": "mobilenetv3_small_100",
            "data_source": "phantom",
            "image_size": 128,
        }
    )
    validation: dict[str, tuple[float, float]] = field(default_factory=lambda: dict(VALIDATION))

    def write(self) -> Path:
        self.path.mkdir(exist_ok=True)
        (self.path / "config.yaml").write_text("run:\n  seed: 7\nnote: '<script>x</script>'\n")
        identities = {
            name: self._stage(name, before, after)
            for name, (before, after) in self.validation.items()
        }
        self._evaluate(identities)
        return self.path

    def _stage(self, name: str, before: float, after: float) -> str:
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        (folder / "weights.txt").write_text(name)
        lines: list[dict] = [{"step": 0, "validation_dsc": before}]
        for step in (10, 20, 30):
            lines.append({"step": step, "loss": 8 / step, "mask": 1.0, "learning_rate": 1e-3})
            lines[-1] |= {"samples_per_second": 40.0, "data_wait_share": 0.02}
            lines[-1] |= {"peak_memory_mb": 900.0}
        lines.append({"step": 30, "validation_dsc": after})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text + '{"step": 40, "lo')  # cut by a kill
        summary = {"validation_before": {"dsc": before}, "validation": {"dsc": after}, "steps": 30}
        return self._manifest(name, files=("weights.txt",), summary=summary)

    def _evaluate(self, identities: dict[str, str]) -> None:
        folder = self.path / "evaluate"
        folder.mkdir(exist_ok=True)
        document = {"rows": self.rows, "context": self.context}
        (folder / "rows.json").write_text(json.dumps(document))
        volume = phantom(size=64)[-1]
        generator = np.random.default_rng(0)
        listed, arrays = [], {}
        for index in range(self.samples):
            middle = len(volume.image) // 2
            label = volume.label[middle]
            value = int(np.unique(label)[1:][index % 2])
            truth = label == value
            rows, columns = np.nonzero(truth)
            box = [int(each) for each in (columns.min(), rows.min(), columns.max(), rows.max())]
            arrays |= {f"image_{index}": volume.image[middle], f"truth_{index}": truth}
            for each in self.rows:
                arrays[f"mask_{each['model']}_{index}"] = ndimage.binary_dilation(truth)
            for level, side in (("s4", 32), ("s8", 16), ("s16", 8)):
                teacher = generator.standard_normal((6, side, side))
                for model in ("teacher", "encoder", "finetune"):
                    noise = generator.standard_normal(teacher.shape) * (model != "teacher")
                    arrays[f"{level}_{model}_{index}"] = (teacher + noise / 4).astype(np.float16)
            listed.append(
                {
                    "case_id": f"phantom-{index}",
                    "slice_index": middle,
                    "object_name": PHANTOM_OBJECTS[value],
                    "box": box,
                    "dsc": {each["model"]: each["dsc"] for each in self.rows},
                }
            )
        (folder / "samples.json").write_text(json.dumps(listed))
        np.savez(folder / "samples.npz", **arrays)
        self._manifest("evaluate", files=("rows.json",), summary={}, upstream=identities)

    def _manifest(
        self,
        name: str,
        *,
        files: tuple[str, ...],
        summary: dict,
        upstream: dict[str, str] | None = None,
    ) -> str:
        manifest = Manifest(
            schema_version=1,
            stage=name,
            fingerprint=fingerprint({"stage": name}, {}),
            settings={},
            upstream=upstream or {},
            files=describe_files(self.path / name, files),
            summary=summary,
            started_utc="2025-01-02T03:04:05+00:00",
            finished_utc="2025-01-02T03:06:10+00:00",
            versions={"torch": "2.9"},
        )
        write_manifest(self.path / name, manifest)
        return manifest.identity


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(path=tmp_path / "run")


class Page(HTMLParser):
    """Tags with attributes, text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.items: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "li":
            self.items.append((dict(attrs).get("class") or "", ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "li" in self.open:
            state, text = self.items[-1]
            self.items[-1] = (state, f"{text} {data}")

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def checks(self, state: str) -> list[str]:
        return [" ".join(text.split()) for name, text in self.items if name == state]


def reported(run_dir: Path) -> tuple[Page, dict]:
    files = write_report(run_dir)
    assert (files.html, files.json) == (run_dir / "report.html", run_dir / "report.json")
    assert str(files) == str(files.html)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    page = Page(files.html.read_text(encoding="utf-8"))
    return page, json.loads(files.json.read_text(), parse_constant=refuse)


def test_a_whole_run(folder):
    page, document = reported(folder.write())
    assert page.open == []
    assert [each["model"] for each in document["rows"]] == list(FIGURES)
    for each, given in zip(document["rows"], folder.rows, strict=True):
        by_seed = {f"{name}_seeds": [given[name]] for name in SEED_FIGURES}
        assert each == given | by_seed | {"cache_bytes_per_slice": 131_072}
    assert document["context"] == folder.context
    assert all(check["ok"] for check in document["checks"])
    assert {"name", "value", "wanted", "ok"} <= set(document["checks"][0])
    assert page.checks("failed") == []
    assert len(page.checks("passed")) == len(document["checks"]) == 8
    assert "keeps 98 % of the teacher's DSC (94 % in 3D) and needs 7.1 × fewer GFLOP" in page.text
    assert "NSD @ 2 mm" in page.text
    assert "2 min 05 s" in page.text
    assert "generated by a program" in page.text
    assert "torch 2.9" in page.text
    assert "Seed 7" in page.text
    assert not list(folder.path.glob(".*"))


def test_the_page_needs_nothing_else(folder):
    folder.samples = 4
    page, _ = reported(folder.write())
    raw = (folder.path / "report.html").read_text()
    assert len(raw) < 8_000_000
    assert not re.search(r"https?://|@import|url\(", raw)
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 3 + 4 * 5 + 3 * (1 + 3 * 3)  # curves, overlays, features
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "srcset", "href"):
            assert (attrs.get(name) or "data:image/png;base64,").startswith(
                "data:image/png;base64,"
            )
    assert all(attrs["alt"] for attrs in pictures)
    assert "<script>x" not in raw  # what a config holds is text


def test_failing_checks_are_red_and_say_what_was_wanted(folder):
    by_model = {each["model"]: each for each in folder.rows}
    by_model["finetune"] |= {"gflop": 0.25, "dsc": 0.70, "retention": 0.70 / 0.853}
    by_model["finetune_10"] |= {"dsc": 0.702}
    folder.validation["finetune"] = (0.818, 0.790)
    page, document = reported(folder.write())
    assert page.checks("failed") == [
        "✗ failed GFLOP per slice, teacher over student 2.3 × fewer: 0.57 → 0.25 "
        "wanted: at least 3",
        "✗ failed DSC kept from the teacher 82.1 %: 0.700 of 0.853 wanted: at least 90 %",
        "✗ failed Student over baseline, all labels -0.041: 0.700 against 0.741 "
        "wanted: DSC above the baseline's",
        "✗ failed Student over baseline, 10 % of the labels +0.000: 0.702 against 0.702 "
        "wanted: DSC above the baseline's",
        "✗ failed Validation DSC after finetune -0.028: 0.818 → 0.790 "
        "wanted: not below the one before it",
    ]
    assert "5 of 8 checks failed" in page.text
    assert [check["ok"] for check in document["checks"]].count(False) == 5
    css = (folder.path / "report.html").read_text()
    assert re.search(r"\.failed \.verdict, \.failed \.figure[^{]*\{ color: var\(--bad\)", css)
    assert "--bad: #b3261e" in css


def test_missing_models_and_figures_are_dashes(folder):
    folder.rows = [row("encoder") | {"nsd": float("nan"), "dsc_3d": None, "retention": None}]
    folder.context |= {"nsd_tolerance_mm": None, "track_length": None, "tracks": 0}
    page, document = reported(folder.write())
    (only,) = document["rows"]
    assert only["nsd"] is None
    assert only["dsc_3d"] is None
    assert [check["ok"] for check in document["checks"][:3]] == [None] * 3
    assert len(page.checks("unmeasured")) == 3
    assert "No check failed; 3 could not be measured" in page.text
    assert "0.829 – –" in page.text
    pictures = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert not any("contour of teacher" in words for words in pictures)


def test_features_of_a_slice_are_shown_once(folder):
    folder.samples = 2
    path = folder.write() / "evaluate" / "samples.json"
    listed = json.loads(path.read_text())
    path.write_text(json.dumps([each | {"case_id": "same"} for each in listed]))
    page, _ = reported(folder.path)
    words = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert sum("features of" in each for each in words) == 9
    assert sum("the whole slice" in each for each in words) == 2


def test_no_samples_and_no_curves_are_said(folder):
    folder.samples, folder.validation = 0, {}
    page, _ = reported(folder.write())
    assert "The evaluation kept no samples." in page.text
    assert "No stage left a loss curve" in page.text


def test_weights_that_changed_after_the_evaluation_are_named(folder):
    run_dir = folder.write()
    folder._stage("memory", 0.8, 0.9)
    assert reported(run_dir)[0].checks("failed") == []  # the same weights again
    (run_dir / "memory" / "weights.txt").write_text("others")
    folder._manifest("memory", files=("weights.txt",), summary={})
    (failed,) = reported(run_dir)[0].checks("failed")
    assert failed == "✗ failed Evaluated weights changed since: memory wanted: those in this folder"


def test_an_evaluation_without_manifest_is_not_trusted(folder):
    run_dir = folder.write()
    (run_dir / "evaluate" / "manifest.json").unlink()
    (line,) = reported(run_dir)[0].checks("unmeasured")
    assert "no figure of: manifest of evaluate" in line


def test_no_evaluation_names_the_command(tmp_path):
    command = re.escape(f"efficient-medsam2 evaluate -c {tmp_path / 'config.yaml'}")
    with pytest.raises(ArtifactError, match=rf"rows\.json is missing\. Make it: {command}"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b"{", r"rows\.json is damaged: Expecting"),
        ("rows.json", b'{"rows": [{"dsc": 1}], "context": {}}', r"damaged: rows\.0\.model: "),
        ("samples.json", b'[{"case_id": "a"}]', r"samples\.json is damaged: 0\.slice_index"),
        ("samples.npz", b"PK\3\4 cut", r"samples\.npz is damaged"),
        ("samples.npz", None, r"samples\.npz is missing"),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    path = folder.write() / "evaluate" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        write_report(folder.path)
    assert "--force evaluate" in str(caught.value)
    assert not (folder.path / "report.html").exists()


def test_masks_of_another_size_are_refused(folder):
    path = folder.write() / "evaluate" / "samples.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["mask_teacher_0"] = arrays["mask_teacher_0"][:-1]
    np.savez(path, **arrays)
    with pytest.raises(ArtifactError, match=r"mask_teacher_0 is \(63, 64\), its image \(64, 64\)"):
        write_report(folder.path)
    del arrays["truth_0"]
    np.savez(path, **arrays)
    with pytest.raises(ArtifactError, match="no array truth_0"):
        write_report(folder.path)


def test_summary_table_lines_up():
    lines = summary_table([row("finetune"), row("teacher") | {"dsc_3d": None}]).splitlines()
    assert lines[0].split() == [
        "model",
        "DSC",
        "DSC",
        "3D",
        "NSD",
        "retention",
        "GFLOP",
        "ms/slice",
    ]
    assert lines[1].split() == ["teacher", "0.853", "–", "0.910", "100.0", "%", "0.570", "9.4"]
    assert lines[2].split() == ["finetune", "0.836", "0.634", "0.890", "98.0", "%", "0.080", "2.2"]
    assert len({len(line) for line in lines}) == 1
