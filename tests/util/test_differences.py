"""Fields that differ between two descriptions."""

from __future__ import annotations

from torchrl_flow.util.differences import differing_fields


def test_fields_that_differ_are_named_with_both_values_in_order():
    found, wanted = {"b": 1, "a": 2, "same": (1, 2)}, {"a": 3, "same": [1, 2], "new": 4}
    assert differing_fields(found, wanted) == [
        "b: checkpoint 1, here None",
        "a: checkpoint 2, here 3",
        "new: checkpoint None, here 4",
    ]
    assert differing_fields(found, found) == []


def test_names_form_and_the_word_for_absent_fields_are_the_caller_s():
    found, wanted = {"a": 1, "b": 1}, {"a": 2, "b": 2, "c": (3,)}
    form = "{name} ({found!r} there, {wanted!r} now)"
    assert differing_fields(found, wanted, ["a"], form=form) == ["a (1 there, 2 now)"]
    assert differing_fields(found, wanted, ["c"], absent="not recorded") == ["c: checkpoint 'not recorded', here [3]"]
