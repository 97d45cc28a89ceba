"""Statistics of results: intervals, tests, effect sizes, spread, agreement between runs.

Pure functions on numbers and NumPy arrays, usable without the engine. SciPy is imported by those that need
it, when they are called. A NaN that goes in comes out: nothing is dropped in silence.
"""

from __future__ import annotations
