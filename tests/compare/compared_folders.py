"""Run folders to compare, written in the format of the engine."""

from __future__ import annotations

import json

import numpy as np

from sft_engine import View, hookimpl

LABELS = ("no", "yes")


class Folders:
    """Writes run folders whose answers to `n` examples are right as a test says."""

    def __init__(self, root, n=200):
        self.root = root
        self.truth = np.random.default_rng(0).integers(0, 2, n)

    def lines(self, right, rows=None):
        right = np.asarray(right, dtype=bool)
        answers = np.where(right, self.truth, 1 - self.truth)
        rows = range(len(right)) if rows is None else rows
        return [
            {
                "row": row,
                "prediction": LABELS[answer],
                "probabilities": {"no": 0.8 if not answer else 0.2, "yes": 0.8 if answer else 0.2},
                "label": LABELS[true],
            }
            for row, answer, true in zip(rows, answers, self.truth, strict=True)
        ]

    def run(
        self,
        name,
        right=None,
        *,
        lines=None,
        seed=0,
        data="train",
        views=None,
        metrics=None,
        split="test",
    ):
        folder = self.root / name
        (folder / "predictions").mkdir(parents=True)
        lines = self.lines(right) if lines is None and right is not None else lines
        values = {} if right is None else {"accuracy": float(np.mean(right))}
        values |= metrics or {}
        records = []
        for view, given in (views or {}).items():
            if isinstance(given, dict):
                values |= {f"{view}/{metric}": value for metric, value in given.items()}
                records.append({"view": view, "examples": len(self.truth), **given})
            else:
                path = folder / "predictions" / split / f"{view}.jsonl"
                path.parent.mkdir(exist_ok=True)
                lines_of_view = given if isinstance(given[0], dict) else self.lines(given)
                path.write_text(as_lines(lines_of_view))
        if lines is not None:
            (folder / "predictions" / f"{split}.jsonl").write_text(as_lines(lines))
        evaluations = [
            {"kind": "evaluation", "split": split, "step": 3, **each} for each in records
        ]
        (folder / "metrics.jsonl").write_text(
            as_lines([{"kind": "train", "step": 1}, *evaluations])
        )
        write(folder / "report.json", {"recipe": f"{name}.toml", "split": split, "metrics": values})
        seeds = {"init": seed, "order": seed, "subset": seed, "noise": seed}
        facts = {"seeds": seeds, "data": {"train": data, split: "hash"}, "label_names": LABELS}
        write(folder / "run.json", facts)
        return folder

    def study(self, name, rights):
        """Write a study: `rights[data][seed]` says which answers are right; None for a run without result."""
        for d, row in enumerate(rights):
            for s, right in enumerate(row):
                cell = f"{name}/runs/data-{d}-seed-{s}"
                if right is None:
                    (self.root / cell).mkdir(parents=True)
                else:
                    self.run(cell, right, seed=s, data=f"data {d}")
        write(self.root / name / "study.json", {"recipe": "r.toml", "design": [], "state": "done"})
        return self.root / name


def as_lines(records):
    return "".join(json.dumps(each) + "\n" for each in records)


def write(path, value):
    path.write_text(json.dumps(value))


def right(share, n=200, *, first=0):
    """Return flags of which `share` are set, all in one piece that begins at `first`."""
    flags = np.zeros(n, dtype=bool)
    flags[(first + np.arange(round(share * n))) % n] = True
    return flags


class Noise:
    """Offers a view of the test split in which letters are replaced by others."""

    @hookimpl
    def sft_eval_views(self, run, split):
        def perturb(run, batch):
            batch.inputs["ids"] = (batch.inputs["ids"] * 7) % 64

        return [View("noise@1", perturb=perturb)] if split == "test" else []
