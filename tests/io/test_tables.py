"""Tables as files."""

import pytest

from ldm.io.tables import write_csv


def test_the_first_row_names_the_columns(tmp_path):
    rows = [{"word": "<a>", "share": 0.5}, {"word": 'b, "c"', "share": None}]
    path = write_csv(rows, tmp_path / "table.csv")
    assert path.read_bytes() == b'word,share\r\n<a>,0.5\r\n"b, ""c""",\r\n'
    with pytest.raises(ValueError, match="more"):
        write_csv([{"word": "a"}, {"word": "b", "more": 1}], path)
    assert path.read_bytes().startswith(b"word,share")
