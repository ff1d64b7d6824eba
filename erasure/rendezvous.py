"""What nodes draw: 64 bits from a digest of the node's name, made once, and a digest of what is drawn for.

The two are brought together by a mixing function rather than by another digest, which would take 10 ms among 10,000 nodes and each
group; numpy mixes all of them in a tenth of one. Nobody gains by its weakness: who wants to win a given group can try names until one
does, whatever the function, and the rule on new nodes is what stands against that.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from blake3 import blake3

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]


def word(*fields: bytes) -> np.uint64:
    """64 bits of BLAKE3 over the fields, each with its length."""
    hasher = blake3()
    for item in fields:
        hasher.update(len(item).to_bytes(2, "big"))
        hasher.update(item)
    return np.uint64(int.from_bytes(hasher.digest(length=8), "big"))


def mix(words: Words) -> Words:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): each bit of the input moves half of the output's."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def uniform(words: Words) -> Floats:
    """Each as a number between 0 and 1, both excluded."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def rendezvous(worth: float, *fields: bytes) -> float:
    """Weighted rendezvous for one: the highest of some wins, with chances in proportion to worth."""
    return worth / -math.log(float(uniform(np.array([word(*fields)], np.uint64))[0]))
