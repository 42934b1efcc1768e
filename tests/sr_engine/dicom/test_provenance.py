"""Provenance survives the file and shows any change."""

import json
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from sr_engine.dicom import provenance
from sr_engine.dicom.provenance import Provenance, from_dataset, to_private_block
from sr_engine.errors import HeaderError, InputRefused

MADE = Provenance(
    source_study_uid="1.2.3",
    source_series_uid="1.2.3.4",
    source_sop_uids=("1.2.3.4.1", "1.2.3.4.2"),
    recipe={"steps": 4, "spacing_mm": 0.7},
    recipe_digest="ff",
    bundle_name="student",
    bundle_sha256="ab" * 32,
    software_name="sr-engine",
    software_version="0.1.0",
    job_id="17",
    created="2026-03-04T05:06:07+00:00",
    bias_field="guidance",
    gradient_nonlinearity="no-coefficients: for this scanner there is no file",
    quality={"residual_ratio": 1.03},
    timings_s={"read": 0.25},
)


def carrier(made=MADE):
    dataset = Dataset()
    dataset.SOPInstanceUID = "1.2.9"
    to_private_block(dataset, made)
    return dataset


def test_provenance_comes_back_equal():
    assert from_dataset(carrier()) == MADE


def test_provenance_survives_an_archive_that_stores_implicit_vr():
    dataset = carrier()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    stream.seek(0)

    assert from_dataset(pydicom.dcmread(stream)) == MADE


def test_the_digest_does_not_depend_on_the_order_of_keys():
    turned = replace(MADE, recipe={"spacing_mm": 0.7, "steps": 4})

    assert turned.digest() == MADE.digest()
    assert replace(MADE, generation=2).digest() != MADE.digest()


@pytest.mark.parametrize(
    ("element", "value"),
    [
        (provenance.JOB_ID, "18"),
        (provenance.BUNDLE_SHA256, "cd" * 32),
        (provenance.DIGEST, "00" * 32),
        (provenance.DOCUMENT, MADE.to_json().replace('"steps":4', '"steps":1')),
    ],
)
def test_a_changed_element_is_refused(element, value):
    dataset = carrier()
    dataset.private_block(provenance.GROUP, provenance.CREATOR)[element].value = value

    with pytest.raises(InputRefused, match=r"provenance of 1\.2\.9 was changed"):
        from_dataset(dataset)


@pytest.mark.parametrize("element", [None, provenance.DIGEST, provenance.DOCUMENT])
def test_an_instance_without_provenance_is_refused(element):
    dataset = Dataset() if element is None else carrier()
    dataset.SOPInstanceUID = "1.2.9"
    if element is not None:
        del dataset.private_block(provenance.GROUP, provenance.CREATOR)[element]

    with pytest.raises(HeaderError, match=r"1\.2\.9 carries no"):
        from_dataset(dataset)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        (json.dumps({"schema_version": 99}), "schema version 99"),
        (json.dumps({**MADE.to_dict(), "extra": 1}), "'extra' is missing or unknown"),
        (json.dumps({"schema_version": 1}), "is missing or unknown"),
    ],
)
def test_a_document_of_another_kind_is_refused(text, reason):
    with pytest.raises(InputRefused, match=reason):
        Provenance.from_json(text)


def test_not_a_number_is_no_provenance():
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(MADE, quality={"residual": float("nan")}).to_json()


def test_the_service_reads_provenance_without_the_engine():
    code = (
        "import sys, dicom_node.release_gate, sr_engine.dicom.provenance;"
        "print([m for m in ('torch', 'SimpleITK', 'highdicom', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


def test_a_document_of_the_first_schema_is_read_as_it_was_written():
    values = MADE.to_dict() | {"schema_version": 1}
    for name in provenance.ADDED[2]:
        del values[name]
    old = Provenance.from_json(json.dumps(values))

    assert old.to_dict() == values
    assert (old.series, old.result_sha256) == ({}, "")
    assert from_dataset(carrier(old)) == old


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_a_document_of_an_unknown_schema_is_refused(version):
    with pytest.raises(InputRefused, match="schema version"):
        Provenance.from_json(json.dumps(MADE.to_dict() | {"schema_version": version}))
