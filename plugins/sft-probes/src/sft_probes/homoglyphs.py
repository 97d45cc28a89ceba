"""Letters of other alphabets that look like Latin ones in most fonts: a small table of our own.

Written as code points, because nobody could read it otherwise: Cyrillic is U+04xx, Greek U+03xx, Armenian U+05xx.
"""

from __future__ import annotations

from collections.abc import Mapping

_CODES = {
    "a": (0x0430,),
    "c": (0x0441, 0x03F2),
    "d": (0x0501,),
    "e": (0x0435,),
    "g": (0x0581,),
    "h": (0x04BB,),
    "i": (0x0456,),
    "j": (0x0458,),
    "l": (0x04CF,),
    "n": (0x0578,),
    "o": (0x043E, 0x03BF),
    "p": (0x0440,),
    "q": (0x051B,),
    "s": (0x0455,),
    "u": (0x057D,),
    "v": (0x03BD, 0x0475),
    "w": (0x051D,),
    "x": (0x0445,),
    "y": (0x0443,),
    "A": (0x0410, 0x0391),
    "B": (0x0412, 0x0392),
    "C": (0x0421, 0x03F9),
    "E": (0x0415, 0x0395),
    "H": (0x041D, 0x0397),
    "I": (0x0406, 0x0399),
    "J": (0x0408,),
    "K": (0x041A, 0x039A),
    "M": (0x041C, 0x039C),
    "N": (0x039D,),
    "O": (0x041E, 0x039F),
    "P": (0x0420, 0x03A1),
    "S": (0x0405,),
    "T": (0x0422, 0x03A4),
    "X": (0x0425, 0x03A7),
    "Y": (0x03A5, 0x04AE),
    "Z": (0x0396,),
}

LOOK_ALIKES: Mapping[str, str] = {
    letter: "".join(map(chr, codes)) for letter, codes in _CODES.items()
}
"""For each letter those that look like it."""
