"""Rated texts: how a file becomes a data set, on an archive built here; then the real one."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from sft_demos import reviews
from sft_demos.reviews import (
    CITATION,
    TEXTS,
    AmazonReviews,
    MovieReviews,
    NytEditorials,
    RatedTexts,
    Tweets,
)
from sft_engine import DataError

LINES = (
    '1\t2.5\tA clich\N{LATIN SMALL LETTER E WITH ACUTE}, but a "good" one.',
    "2\t-0.25\tit's ''fine'' &amp; dull",
    "3\t0.0\tneither",
    "4\t-0.0\tnor",
    "5\t-3\tone\x85line, not two ",
    "6\t2.5\tit's ''fine'' &amp; dull",
)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive laid out as the real one, which the components then load."""
    content = "\r\n".join(LINES).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as inner:
        member = tarfile.TarInfo(f"hutto_ICWSM_2014/{MovieReviews.file}")
        member.size = len(content)
        inner.addfile(member, io.BytesIO(content))
    path = tmp_path / "vader.zip"
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr(TEXTS, buffer.getvalue())
    monkeypatch.setattr(reviews, "fetch_vader", lambda: path)
    return path


def test_label_is_the_sign_of_the_rating_and_text_is_as_published(archive: Path) -> None:
    splits = MovieReviews().load()
    assert list(splits) == ["train"]
    assert splits["train"].to_dict() == {
        "id": ["1", "2", "5", "6"],
        "text": [LINES[0][6:], LINES[1][8:], "one\x85line, not two ", LINES[5][6:]],
        "label": ["positive", "negative", "negative", "positive"],
        "rating": [2.5, -0.25, -3.0, 2.5],
    }


def test_data_set_is_the_same_each_time_and_says_whom_to_cite(archive: Path) -> None:
    first, again = (MovieReviews().load()["train"] for _ in range(2))
    assert first._fingerprint == again._fingerprint
    assert first.info.citation == CITATION


@pytest.mark.parametrize(("min_strength", "ids"), [(0.25, ["1", "5", "6"]), (2.5, ["5"])])
def test_min_strength_keeps_what_is_further_from_zero(
    archive: Path, min_strength: float, ids: list[str]
) -> None:
    assert MovieReviews(min_strength=min_strength).load()["train"].to_dict()["id"] == ids


def test_min_strength_that_leaves_nothing(archive: Path) -> None:
    with pytest.raises(DataError) as caught:
        MovieReviews(min_strength=3.5).load()
    assert str(caught.value) == (
        "[data] min_strength = 3.5 leaves none of the 6 texts: the strongest rating is 3; "
        "choose less."
    )


@pytest.mark.demo
@pytest.mark.parametrize(
    ("source", "positive", "negative", "unique"),
    [
        (MovieReviews, 5242, 5326, 10_566),
        (Tweets, 2897, 1299, 4_196),
        (AmazonReviews, 2128, 1482, 3_600),
        (NytEditorials, 2204, 2742, 4_884),
    ],
)
def test_real_texts(source: type[RatedTexts], positive: int, negative: int, unique: int) -> None:
    data = source().load()["train"]
    assert data.column_names == ["id", "text", "label", "rating"]
    assert Counter(data["label"]) == {"positive": positive, "negative": negative}
    assert len(set(data["id"])) == len(data)
    assert len(set(data["text"])) == unique
    assert 2.5 < max(map(abs, data["rating"])) < 4
    assert all(text.strip() for text in data["text"])


@pytest.mark.demo
def test_real_texts_are_decoded_right() -> None:
    texts = "".join(MovieReviews().load()["train"]["text"])
    foreign = {character for character in texts if ord(character) > 127}
    assert foreign == set("àáâãæçèéíïñóôöûü\N{VULGAR FRACTION ONE HALF}\u2013\u2019")


@pytest.mark.demo
def test_real_archive_comes_through_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SFT_ENGINE_CACHE", str(tmp_path))
    path = reviews.fetch_vader()
    assert path == tmp_path / "demos" / "vaderSentiment-0.5.zip"
    assert path.stat().st_size == 2_448_964
