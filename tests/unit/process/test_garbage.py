"""Imports without garbage collections: the collector works again afterwards, and reads less."""

from __future__ import annotations

import gc

import pytest

from service.process.garbage import kept_imports


@pytest.fixture(autouse=True)
def _collector():
    yield
    gc.enable()


def test_what_is_imported_is_left_out_of_collections():
    before = gc.get_freeze_count()

    with kept_imports():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]

    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)


def test_an_import_that_fails_leaves_the_collector_on():
    with pytest.raises(ImportError), kept_imports():
        import service.there_is_no_such_module  # noqa: F401

    assert gc.isenabled()
