"""Images, for authors of image backbones: decoding, the evaluation pipeline, encoded examples.

Needs pillow and torchvision, the extra `images`. The engine itself imports this package only when a
recipe has images.
"""

from __future__ import annotations

from sft_engine.images.decoding import ImageError, decode
from sft_engine.images.examples import ImageExamples, encode_images, stack_images
from sft_engine.images.pipeline import Pipeline

__all__ = ["ImageError", "ImageExamples", "Pipeline", "decode", "encode_images", "stack_images"]
