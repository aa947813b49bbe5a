"""The properties that `make fuzz` looks for holes in hold for its seeds; what it once found is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.properties import PROPERTIES

SEEDS = sorted((Path(__file__).parents[1] / "fuzz" / "seeds").glob("*/*"))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed.parent.name}-{seed.name}")
def test_a_property_holds_for_its_seed(seed: Path) -> None:
    PROPERTIES[seed.parent.name](seed.read_bytes())


@pytest.mark.parametrize("name", PROPERTIES)
def test_each_property_has_seeds_and_holds_for_nothing_at_all(name: str) -> None:
    assert [seed for seed in SEEDS if seed.parent.name == name]
    PROPERTIES[name](b"")
