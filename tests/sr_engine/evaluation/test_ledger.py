"""Where the rows go is known before the first of them has taken its minutes."""

import pytest

from sr_engine.errors import InputRefused
from sr_engine.evaluation.ledger import Ledger


def test_a_folder_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(InputRefused, match=r"there is no folder .*nowhere"):
        Ledger(tmp_path / "nowhere" / "rows.json", ("case",), (), {})


def test_rows_stay_in_the_file(tmp_path):
    path = tmp_path / "rows.json"
    Ledger(path, ("case",), ("weights",), {}).add({"case": "a", "weights": "w", "psnr_db": 1.0})

    again = Ledger(path, ("case",), ("weights",), {})
    assert again.find(case="a", weights="w") == {"case": "a", "weights": "w", "psnr_db": 1.0}
