"""The photographs, their licences and which split each belongs to.

All come inside scikit-image's wheel and load without network. `moon`, `page`, `lfw_subset` and
`stereo_motorcycle` are in that wheel too and are left out: their docstrings state no licence.
"""

from __future__ import annotations

from typing import NamedTuple

_CC0 = "CC0 1.0"
_PUBLIC_DOMAIN = "public domain"
_NO_RESTRICTIONS = "no known copyright restrictions"


class Photograph(NamedTuple):
    """One picture: `loader` is the function of `skimage.data` that returns it."""

    split: str
    name: str
    loader: str
    licence: str
    source: str


PHOTOGRAPHS = (
    Photograph("train", "brick", "brick", _CC0, "CC0Textures, Bricks25"),
    Photograph("train", "cat", "cat", _CC0, "Stefan van der Walt"),
    Photograph("train", "clock", "clock", _PUBLIC_DOMAIN, "Stefan van der Walt"),
    Photograph("train", "coffee", "coffee", _CC0, "Rachel Michetti, Pikolo Espresso Bar"),
    Photograph("train", "coins", "coins", _NO_RESTRICTIONS, "Brooklyn Museum, image 51611"),
    Photograph("train", "grass", "grass", _CC0, "DeviantArt, linolafett, Grass 01"),
    Photograph("train", "hubble", "hubble_deep_field", _PUBLIC_DOMAIN, "NASA, HubbleSite 2012/37"),
    Photograph("train", "ihc", "immunohistochemistry", _NO_RESTRICTIONS, "CMMI"),
    Photograph("train", "retina", "retina", _CC0, "Mikael Häggström, Wikimedia Commons"),
    Photograph("val", "gravel", "gravel", _CC0, "CC0Textures, Gravel04"),
    Photograph("val", "rocket", "rocket", _PUBLIC_DOMAIN, "SpaceX Photos, 16511594820"),
    Photograph("test", "astronaut", "astronaut", _PUBLIC_DOMAIN, "NASA, Great Images"),
    Photograph("test", "camera", "camera", _CC0, "Lav Varshney"),
    Photograph("test", "text", "text", _PUBLIC_DOMAIN, "Wikipedia, Corner.png"),
)

SPLITS = ("train", "val", "test")


def names_of(split: str) -> tuple[str, ...]:
    """Names of a split's pictures, in the order in which data sets index them.

    >>> names_of("test")
    ('astronaut', 'camera', 'text')
    """
    return tuple(photograph.name for photograph in PHOTOGRAPHS if photograph.split == split)
