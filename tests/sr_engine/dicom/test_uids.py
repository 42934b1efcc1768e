"""The same inputs give the same UIDs, any other input gives others."""

import pytest
from pydicom.uid import UID

from sr_engine.dicom import uids

INPUTS = {
    "source_series_uid": "1.2.3",
    "source_sop_uids": ("1.2.3.1", "1.2.3.2"),
    "recipe_digest": "aa",
    "bundle_sha256": "bb",
    "software_version": "0.1.0",
    "generation": 1,
    "kind": "MR",
}


def test_the_same_inputs_give_the_same_valid_uid():
    uid = uids.derived_series_uid(**INPUTS)

    assert uid == uids.derived_series_uid(**INPUTS)
    assert UID(uid).is_valid and uid.startswith("2.25.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source_series_uid", "1.2.4"),
        ("source_sop_uids", ("1.2.3.2", "1.2.3.1")),
        ("source_sop_uids", ("1.2.3.1",)),
        ("recipe_digest", "ab"),
        ("bundle_sha256", "bc"),
        ("software_version", "0.1.1"),
        ("generation", 2),
        ("kind", "SD"),
    ],
)
def test_every_input_takes_part(name, value):
    assert uids.derived_series_uid(**{**INPUTS, name: value}) != uids.derived_series_uid(**INPUTS)


def test_instances_of_one_series_are_distinct():
    found = {uids.derived_instance_uid("1.2.3", index) for index in range(300)}

    assert len(found) == 300
    assert all(UID(uid).is_valid for uid in found)


def test_our_implementation_uid_is_valid_and_its_version_name_fits():
    assert UID(uids.IMPLEMENTATION_CLASS_UID).is_valid
    assert len(uids.IMPLEMENTATION_VERSION_NAME) <= 16
