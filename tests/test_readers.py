"""Whatever a file holds: it is read, or refused in one line."""

import pytest
from hard.readers import READERS, fuzz


@pytest.mark.parametrize("name", READERS)
def test_any_file_is_read_or_refused_in_one_line(name, tmp_path):
    """A few; ``python -m hard`` reads a thousand."""
    fuzz(name, tmp_path, examples=10)
