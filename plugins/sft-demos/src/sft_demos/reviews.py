"""Four data sets of short texts with human ratings, from the VADER source archive.

Each text was rated by at least 20 people from -4 (most negative) to 4 (most positive). The label is
the sign of their mean; texts with a mean of exactly 0 are left out. The files are UTF-8, one text a
line, `id <tab> mean <tab> text`; texts are passed on as published, HTML entities included.

Source: Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text. Eighth International Conference on Weblogs and Social Media.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from annotated_types import Ge, Lt

from sft_demos.fetch import fetch
from sft_engine import DataError

if TYPE_CHECKING:
    from datasets import Dataset

CITATION = (
    "Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment "
    "Analysis of Social Media Text. Eighth International Conference on Weblogs and Social Media "
    "(ICWSM-14). Ann Arbor, MI, June 2014."
)
TEXTS = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
"""Where the texts are in the source archive."""


class Rated(NamedTuple):
    """A text with the mean of its human ratings, -4 to 4."""

    id: str
    rating: float
    text: str


def fetch_vader() -> Path:
    """Return the verified source archive (2.4 MB). Raises DataError if it cannot be fetched."""
    return fetch(
        "vaderSentiment",
        "0.5",
        "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        "vaderSentiment-0.5.zip",
        source=True,
        megabytes=2.4,
    )


def read_rated(archive: Path, file: str) -> list[Rated]:
    """Read the rated texts of one file in the source archive, in their order; unpacks nothing."""
    with (
        zipfile.ZipFile(archive) as outer,
        outer.open(TEXTS) as compressed,
        tarfile.open(fileobj=compressed, mode="r:gz") as inner,
    ):
        member = inner.extractfile(f"hutto_ICWSM_2014/{file}")
        if member is None:
            raise DataError(f"{archive} holds no regular file '{file}': delete it.")
        content = member.read().decode("utf-8")
    # no csv reader: quotes are plain characters; no splitlines: it also splits at rarer characters
    rows = (line.rstrip("\r").split("\t") for line in content.split("\n") if line)
    return [Rated(key, float(rating), text) for key, rating, text in rows]


class RatedTexts:
    """What the four data sets share: options, columns, and how labels come from ratings."""

    file: ClassVar[str]
    """Name of the file in the archive."""
    about: ClassVar[str]
    """One sentence for model cards."""

    def __init__(self, min_strength: Annotated[float, Ge(0), Lt(4)] = 0.0) -> None:
        self.min_strength = min_strength

    def load(self) -> dict[str, Dataset]:
        """Return the one split `train`: columns `id`, `text`, `label` and `rating`, in file order.

        Label is "negative" or "positive", rating the mean human rating (-4..4, never 0). Texts that
        occur twice stay in twice. Raises DataError if the archive cannot be fetched or no text is
        left.
        """
        from datasets import Dataset, DatasetInfo

        rated = read_rated(fetch_vader(), self.file)
        kept = [row for row in rated if abs(row.rating) > self.min_strength]
        if not kept:
            raise DataError(
                f"[data] min_strength = {self.min_strength} leaves none of the {len(rated)} texts: "
                f"the strongest rating is {max(abs(row.rating) for row in rated):g}; choose less."
            )
        columns = {
            "id": [row.id for row in kept],
            "text": [row.text for row in kept],
            "label": ["positive" if row.rating > 0 else "negative" for row in kept],
            "rating": [row.rating for row in kept],
        }
        info = DatasetInfo(description=self.about, citation=CITATION, license="MIT")
        return {"train": Dataset.from_dict(columns, info=info)}


class MovieReviews(RatedTexts):
    """Sentence-long movie-review snippets from rotten.tomatoes.com: 5,242 positive, 5,326 negative.

    Args:
        min_strength: Keep texts whose mean rating is further than this from 0 (0 to 4). At 1, 9,023
            clear cases are left.
    """

    file = "movieReviewSnippets_GroundTruth.txt"
    about = "Movie-review snippets with mean human sentiment ratings (VADER, ICWSM 2014)."


class Tweets(RatedTexts):
    """Tweets with user names and links blanked out: 2,897 positive, 1,299 negative.

    Args:
        min_strength: Keep texts whose mean rating is further than this from 0 (0 to 4).
    """

    file = "tweets_GroundTruth.txt"
    about = "Tweet-like texts with mean human sentiment ratings (VADER, ICWSM 2014)."


class AmazonReviews(RatedTexts):
    """Sentences of customer reviews of 5 products: 2,128 positive, 1,482 negative.

    Args:
        min_strength: Keep texts whose mean rating is further than this from 0 (0 to 4).
    """

    file = "amazonReviewSnippets_GroundTruth.txt"
    about = "Product-review sentences with mean human sentiment ratings (VADER, ICWSM 2014)."


class NytEditorials(RatedTexts):
    """Sentences of New York Times editorials: 2,204 positive, 2,742 negative.

    Args:
        min_strength: Keep texts whose mean rating is further than this from 0 (0 to 4).
    """

    file = "nytEditorialSnippets_GroundTruth.txt"
    about = "Newspaper-editorial sentences with mean human sentiment ratings (VADER, ICWSM 2014)."
