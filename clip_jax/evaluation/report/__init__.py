"""report.html: an evaluation as a page to read, from the dict that report.json holds."""

from clip_jax.evaluation.report.album import thumbnail
from clip_jax.evaluation.report.page import render

__all__ = ["render", "thumbnail"]
