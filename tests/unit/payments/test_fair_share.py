"""Places shared out in turn, from call to call."""

from __future__ import annotations

from collections import Counter

from service.payments.leases.fair_share import WINDOW, Due, FairShare, in_turn


def rows_of(owner: str, count: int) -> list[Due]:
    return [Due((owner,), f"{owner}{number}") for number in range(count)]


def test_each_owner_has_one_row_before_any_has_two():
    picked = in_turn([*rows_of("a", 9), *rows_of("b", 1), *rows_of("c", 2)], 5)

    assert [row.key for row in picked] == ["a0", "b0", "c0", "a1", "c1"]


def test_the_same_row_is_picked_once():
    assert len(in_turn([*rows_of("a", 1), *rows_of("a", 1)], 2)) == 1


def test_owners_behind_the_last_one_served_come_first():
    queues = {owner: rows_of(owner, 100) for owner in "abcde"}
    share = FairShare()

    def behind(last: tuple[str, ...] | None) -> list[Due]:
        return [
            row for owner in "abcde" if last is None or (owner,) > last for row in queues[owner]
        ]

    served: Counter[str] = Counter()
    for _ in range(5):
        for row in share.pick(2, lambda most: queues["a"][:most], behind):
            served[row.owner[0]] += 1
            queues[row.owner[0]].remove(row)

    assert set(served.values()) == {2}


def test_rows_of_another_provider_fill_the_window_but_no_place():
    others = [Due(("a",), str(number), is_ours=False) for number in range(WINDOW)]

    picked = FairShare().pick(2, lambda most: others[:most], lambda last: rows_of("b", 1))

    assert [row.owner for row in picked] == [("b",)]


def test_where_few_rows_are_due_no_owner_is_asked():
    def behind(last: tuple[str, ...] | None) -> list[Due]:
        raise AssertionError("asked")

    assert len(FairShare().pick(8, lambda most: rows_of("a", WINDOW - 1), behind)) == 8
