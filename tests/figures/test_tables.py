from __future__ import annotations

import pytest

from torchrl_flow.figures import markdown_table


def test_a_table_has_a_line_for_header_rule_and_each_row():
    assert markdown_table(["a", "b"], [[1, ""], ["x", 0.5]]) == "| a | b |\n| --- | --- |\n| 1 |  |\n| x | 0.5 |"


def test_a_short_row_is_named():
    with pytest.raises(ValueError, match=r"must have 2 cells, as the header has, got 1: \['x'\]"):
        markdown_table(["a", "b"], [["x"]])
