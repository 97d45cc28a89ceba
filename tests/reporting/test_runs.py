"""Reports of real runs: page and report.json agree, components add sections, strangers' data is harmless."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from sft_engine import OutputError, hookimpl, report
from sft_engine.errors import CheckpointError
from sft_engine.reporting import write_page
from sft_engine.sections import add_section, bars, lines, text
from sft_engine.testing.runs import TINY, run_recipe

EVIL = "<script>alert('x')</script>"


class Speaks:
    """Adds what any plugin may add, and what none should."""

    @hookimpl
    def sft_report(self, run, report) -> None:
        curve = lines("Drop", x=("severity", [0, 1]), y="accuracy", series={"typos": [0.9, 0.7123]})
        add_section(report, "acme", "Acme", [curve, text("By Acme.")], summary="It drops.")
        report["sections"].append({"id": "odd", "title": "Odd", "blocks": [{"kind": "hologram"}]})


class Term:
    """A regularizer whose term is recorded."""

    @hookimpl
    def sft_loss_terms(self, run, batch, outputs):
        from sft_engine import LossTerm

        yield LossTerm(
            "acme/pull", sum(p.square().sum() for p in run.model.parameters()), 0.01, "step"
        )


PARTS = {
    ("extension", "acme/speaks"): f"{__name__}:Speaks",
    ("regularizer", "acme/term"): f"{__name__}:Term",
}
RECIPE = f'{TINY}\n[[extension]]\nuse = "acme/speaks"\n[[regularizer]]\nuse = "acme/term"\n'


PAGE = ["evaluation.page=true"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "run"
    run_recipe(folder, RECIPE, PAGE, components=PARTS)
    return folder


def read(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text("utf-8"))


def test_the_figures_shown_are_those_of_report_json(parse, run: Path) -> None:
    page, found = parse((run / "report.html").read_text("utf-8")), read(run)
    shown = 0
    for section in found["sections"]:
        for block in section["blocks"]:
            if block["kind"] == "table":
                cells = [["–" if c is None else str(c) for c in row] for row in block["rows"]]  # noqa: RUF001
                assert page.table(block["title"]) == cells
            elif block["kind"] == "matrix":
                assert [row[1:] for row in page.table(block["title"])] == [
                    [str(v) for v in row] for row in block["values"]
                ]
            elif block["kind"] == "lines":
                columns = zip(*page.table(block["title"]), strict=True)
                drawn = dict(zip(heads(block), columns, strict=True))
                for series in block["series"]:
                    wanted = ["–" if v is None else str(v) for v in series["values"]]  # noqa: RUF001
                    assert list(drawn[series["name"]]) == wanted
            else:
                continue
            shown += 1
    assert shown > 8
    words = page.words()
    assert found["verdict"]["headline"].split()[1] in words
    for point in found["verdict"]["points"]:
        assert " ".join(point["text"].split()) in words


def heads(block: dict) -> list[str]:
    names = [block["x"]["label"]]
    for series in block["series"]:
        names += [series["name"], *(f"{series['name']}{k}" for k in ("low", "high") if k in series)]
    return names


def test_figures_of_report_json_are_those_of_the_records(run: Path) -> None:
    found = read(run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    blocks = {b.get("title"): b for s in found["sections"] for b in s["blocks"]}
    trained = [r for r in records if r["kind"] == "train"]
    (term,) = blocks["Loss term acme/pull"]["series"]
    assert term["values"] == [r["loss/acme/pull"] for r in trained]
    assert blocks["Learning rate"]["series"][0]["values"] == [r["lr"] for r in trained]
    last = [r for r in records if r["kind"] == "evaluation" and r["split"] == "test"][-1]
    assert blocks["Confusion matrix"]["values"] == last["confusion_matrix"]
    predicted = [json.loads(x) for x in (run / "predictions/test.jsonl").read_text().splitlines()]
    sure = {
        row["row"]: row for b in blocks.values() if b["kind"] == "examples" for row in b["rows"]
    }
    for each in predicted:
        if each["row"] in sure:
            assert sure[each["row"]]["true"] == each["label"]
            assert sure[each["row"]]["text"]
    assert found["calibration"]["examples"] == found["examples"]["test"] == len(predicted)


def test_a_plugin_adds_a_section_and_what_the_page_does_not_know_is_named(parse, run: Path) -> None:
    words = parse((run / "report.html").read_text("utf-8")).words()
    assert "Acme It drops." in words
    assert "a block of the kind 'hologram'" in words


def test_probes_that_run_later_change_verdict_and_page(run: Path, tmp_path: Path) -> None:
    found = read(run)
    found["probes"] = {"typos": {"metric": "accuracy", "severities": [0, 1], "values": [0.9, 0.2]}}
    for name in ("run.json", "metrics.jsonl", "recipe.toml"):
        (tmp_path / name).write_text((run / name).read_text("utf-8"), "utf-8")
    (tmp_path / "report.json").write_text(json.dumps(found))
    write_page(tmp_path)
    points = {p["topic"]: p for p in read(tmp_path)["verdict"]["points"]}
    assert points["Robustness"]["level"] == "warning"
    assert "Under typos@1" in (tmp_path / "report.html").read_text("utf-8")


def test_a_page_can_be_left_out_and_written_afterwards(tmp_path: Path) -> None:
    run_recipe(tmp_path / "run", overrides=["evaluation.page=false", "train.epochs=1"])
    assert not (tmp_path / "run/report.html").exists()
    before = (tmp_path / "run/report.json").read_text()
    assert report(tmp_path / "run") == tmp_path / "run/report.html"
    assert (tmp_path / "run/report.json").read_text() == before


def test_a_report_goes_where_it_is_asked_to(run: Path, tmp_path: Path) -> None:
    assert report(run, output=tmp_path / "a.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    words = report(run, output=tmp_path / "b.md", markdown=True).read_text("utf-8")
    assert words.startswith("# recipe")
    assert "### Confusion matrix" in words
    with pytest.raises(OutputError, match="cannot"):
        report(run, output=tmp_path / "a.html" / "c.html")


def test_a_run_that_has_not_ended_shows_what_there_is(parse, run: Path, tmp_path: Path) -> None:
    facts = json.loads((run / "run.json").read_text()) | {
        "status": "failed",
        "message": "It diverged.",
    }
    (tmp_path / "run.json").write_text(json.dumps(facts))
    (tmp_path / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"kind": "tra')
    words = parse(write_page(tmp_path).read_text("utf-8")).words()
    assert "This run has not ended" in words
    assert "It diverged." in words
    assert "Gradient norm" in words
    assert not (tmp_path / "report.json").exists()


def test_a_study_is_shown_by_the_same_page(parse, tmp_path: Path) -> None:
    made: dict = {"recipe": "tiny.toml", "verdict": {"headline": "Stable.", "points": []}}
    add_section(made, "seeds", "Seeds", [bars("Accuracy", ["0", "1"], [0.5, 0.625])])
    (tmp_path / "study.json").write_text(json.dumps(made))
    page = parse(write_page(tmp_path).read_text("utf-8"))
    assert "Study report" in page.words()
    assert "Stable." in page.words()
    assert page.table("Accuracy") == [["0", "0.5"], ["1", "0.625"]]


def test_what_is_no_folder_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it is not the folder of a run"):
        report(tmp_path)
    (tmp_path / "report.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds list"):
        report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        report(tmp_path)


def test_a_hostile_data_set_is_shown_as_it_is(parse, tmp_path: Path) -> None:
    path = tmp_path / f"{EVIL.replace('/', '')}.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([EVIL, "kind"])
        for i in range(60):
            rows.writerow([f"{EVIL} {'a' * (i % 7)} $x_{{ {i}", f"{EVIL}{i % 2}"])
    recipe = (
        f"# {EVIL}\n"
        + TINY.replace('use = "tiny/texts"', f"use = 'csv'\npath = {json.dumps(str(path))}")
        + f'\n[data.columns]\ntext = "{EVIL}"\nlabel = "kind"\n'
    )
    run_recipe(tmp_path / "run", recipe, PAGE)
    page = parse((tmp_path / "run/report.html").read_text("utf-8"))
    assert not page.all("script")
    assert page.words().count(EVIL) > 10
    text = report(tmp_path / "run", markdown=True).read_text("utf-8")
    outside, _, recipe = text.partition("```toml")
    assert "<script" not in outside
    assert EVIL in recipe


def test_pictures_are_small_and_inside_the_page(parse, tmp_path: Path) -> None:
    recipe = TINY.replace("text-classification", "image-classification").replace(
        "tiny/texts", "tiny/pictures"
    )
    run_recipe(tmp_path / "run", recipe.replace("tiny/text", "tiny/image"), PAGE)
    page = parse((tmp_path / "run/report.html").read_text("utf-8"))
    images = page.all("img")
    assert images
    assert all(i.get("src").startswith("data:image/") and len(i.get("src")) < 8000 for i in images)
    assert all("true" in i.get("alt") for i in images)
    assert len(page.text) < 250_000
