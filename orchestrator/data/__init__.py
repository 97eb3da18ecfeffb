"""From sources to rows of tokens: read, tokenise, store, order, collate.

Imports neither torch nor ray. Which documents exist and how they become samples is decided once,
by `prepare`; which samples a step sees is a pure function of the step, by `Order`.
"""

from .collate import Flat, NumpyBatch, collate, end_to_end
from .collation import Collate, collation
from .crossing import CrossedStore, Crossing, Samples
from .order import Order, Row, held_out_rows, share
from .prepare import TokenData, prepare
from .reading import (
    OFFSET,
    TEXT,
    Reading,
    inputs_of,
    moved_text,
    parts_of_text,
    reading_of,
    text_tokens,
)
from .store import SampleStore

__all__ = [
    "OFFSET",
    "TEXT",
    "Collate",
    "CrossedStore",
    "Crossing",
    "Flat",
    "NumpyBatch",
    "Order",
    "Reading",
    "Row",
    "SampleStore",
    "Samples",
    "TokenData",
    "collate",
    "collation",
    "end_to_end",
    "held_out_rows",
    "inputs_of",
    "moved_text",
    "parts_of_text",
    "prepare",
    "reading_of",
    "share",
    "text_tokens",
]
