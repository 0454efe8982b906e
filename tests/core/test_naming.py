import doctest

from lightning_gradsched import naming


def test_doctests() -> None:
    assert doctest.testmod(naming).failed == 0
