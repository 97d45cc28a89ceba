"""Two small data sets that scikit-learn brings along: nothing is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sft_engine import DataError

if TYPE_CHECKING:
    from datasets import Dataset

DIGITS = (
    "Alpaydin, E. & Kaynak, C. (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning "
    "Repository."
)
IRIS = "Fisher, R.A. (1936). The use of multiple measurements in taxonomic problems. Annals of Eugenics 7."
INK = 16
"""The darkest value of a pixel in the digits."""


def _sklearn_datasets(name: str) -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            f'[data] use = "{name}" needs scikit-learn, which is not installed: '
            "`pip install scikit-learn`."
        ) from error
    return datasets


class Digits:
    """Handwritten digits, 8 by 8 grey pixels: 1,797 of ten kinds, from scikit-learn."""

    def load(self) -> dict[str, Dataset]:
        """Return the one split `train`: columns `image` (PNG bytes) and `label` ("0" to "9").

        Pixels are scaled from 0..16 to 0..255; ink is bright, as in MNIST. Raises DataError if
        scikit-learn is not installed.
        """
        from sft_demos.pictures import dataset, png

        found = _sklearn_datasets("digits").load_digits()
        pixels = (found.images * (255 / INK)).round().astype("uint8")
        return {
            "train": dataset(
                [png(each) for each in pixels],
                [f"digits/{row:04}.png" for row in range(len(pixels))],
                {"label": [str(label) for label in found.target.tolist()]},
                about="1,797 handwritten digits of 8 by 8 pixels (UCI, scikit-learn).",
                license="CC-BY-4.0",
                citation=DIGITS,
            )
        }


class Iris:
    """Length and width in cm of sepal and petal of 150 irises of three species, from scikit-learn."""

    def load(self) -> dict[str, Dataset]:
        """Return the one split `train`: four columns of numbers and `label`, 50 rows a species.

        Raises DataError if scikit-learn is not installed.
        """
        from datasets import Dataset, DatasetInfo

        found = _sklearn_datasets("iris").load_iris()
        names = [name.removesuffix(" (cm)").replace(" ", "_") for name in found.feature_names]
        columns: dict[str, Any] = dict(zip(names, found.data.T.tolist(), strict=True))
        columns["label"] = [str(found.target_names[i]) for i in found.target]
        about = "Fisher's irises: four measurements in cm, three species."
        info = DatasetInfo(description=about, citation=IRIS, license="CC-BY-4.0")
        return {"train": Dataset.from_dict(columns, info=info)}
