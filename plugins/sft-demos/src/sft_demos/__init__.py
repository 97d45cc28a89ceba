"""Weights and data for demos, tests and benchmarks: from packages, so that no model hub is needed."""

from __future__ import annotations

from typing import Any

from sft_engine import hookimpl

COMPONENTS = {
    "weights": {
        "demo:minilm": (
            "weights:minilm",
            "all-MiniLM-L6-v2, a BERT encoder of 6 layers and 22.7 M parameters.",
        ),
        "demo:efficientnet-lite0": (
            "efficientnet:efficientnet_lite0",
            "EfficientNet-Lite0 with ImageNet weights, 4.7 M parameters, for timm.",
        ),
    },
    "data": {
        "movie-reviews": (
            "reviews:MovieReviews",
            "10,568 movie-review snippets, positive or negative.",
        ),
        "tweets": ("reviews:Tweets", "4,196 tweets, positive or negative."),
        "amazon-reviews": (
            "reviews:AmazonReviews",
            "3,610 product-review snippets, positive or negative.",
        ),
        "nyt-editorials": (
            "reviews:NytEditorials",
            "4,946 editorial snippets, positive or negative.",
        ),
        "mnist-5k": ("mnist:Mnist5k", "5,000 handwritten digits of 28 by 28 pixels."),
        "digits": ("bundled:Digits", "1,797 handwritten digits of 8 by 8 pixels."),
        "photo-stamps": ("stamps:PhotoStamps", "466 small photos of 7 kinds of things; needs apt."),
        "iris": ("bundled:Iris", "150 irises of 3 species: a table of 4 columns."),
    },
}
"""Kind, name, where it is in this package, and one line for lists."""


@hookimpl
def sft_register(catalog: Any) -> None:
    """Offer weights and data; nothing is fetched before a run needs it."""
    for kind, components in COMPONENTS.items():
        for name, (place, summary) in components.items():
            catalog.add(kind, name, f"sft_demos.{place}", summary)
