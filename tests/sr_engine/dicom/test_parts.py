"""Results of the volumes of one series stand beside each other; a series of one is as ever."""

import hashlib
from dataclasses import replace

import pydicom
import pytest

from sr_engine.dicom.kinds import COMPANIONS, FORMS, MOST_PARTS, Part, kind_of
from sr_engine.dicom.reader import read_series
from sr_engine.dicom.template import series_number
from sr_engine.recipe import Recipe
from tests import phantoms

KINDS = (*FORMS, *(f"{form}+{name}" for name in COMPANIONS for form in FORMS))


def part(rank: int, name: str = "sagittal, TE 12 ms"):
    return replace(phantoms.JOB, part=Part(name=name, rank=rank))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    phantom = phantoms.corner_series(folder, "double-oblique", TimezoneOffsetFromUTC="+0100")
    return read_series(phantom.paths)


def test_the_result_of_one_volume_is_what_it_was_before_there_were_parts(source, tmp_path):
    """Archives know such results by UID and content: a resend must bring the same bytes.

    What is told here changes with the recipe alone; last when reduce_noise came to it.
    """
    outputs = phantoms.derive(source, tmp_path, kinds=("classic", "enhanced")).outputs

    told = {}
    for written in outputs:
        whole = hashlib.sha256()
        for path in written.paths:
            whole.update(path.name.encode() + path.read_bytes())
        told[written.series_uid] = (written.paths[0].name, whole.hexdigest()[:16])
    assert told == {
        "2.25.143125888746556770673413010570529816161": ("00001.dcm", "96dfaa0f5bd916f3"),
        "2.25.183474715989745337803749283483722871995": ("enhanced.dcm", "63817d9644b691ab"),
    }


def test_each_part_names_itself_in_description_and_file(source, tmp_path):
    outputs = phantoms.derive(source, tmp_path, job=part(2), kinds=KINDS).outputs

    first = {one.kind: pydicom.dcmread(one.paths[0]) for one in outputs}
    assert first["classic"].SeriesDescription == "t1_mpr sagittal, TE 12 ms AI-SR RESEARCH"
    assert first["classic+spread"].SeriesDescription.endswith("TE 12 ms AI-SR RESEARCH spread")
    names = [path.name for one in outputs for path in one.paths]
    assert all(name.startswith("2-") for name in names)
    assert {"2-00001.dcm", "2-enhanced.dcm", "2-classic-presentation-2.dcm"} <= set(names)


def numbers_of(source, generation: int) -> list[int]:
    """Return the series numbers of everything that one generation may write."""
    return [
        series_number(source, replace(part(rank), generation=generation), Recipe(), kind_of(kind))
        for rank in range(1, MOST_PARTS + 1)
        for kind in KINDS
    ]


def test_no_two_parts_generations_or_kinds_share_a_series_number(source):
    numbers = [
        one for generation in (1, 2, 9, 10, 21, 101) for one in numbers_of(source, generation)
    ]

    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & set(range(300, 400))  # of the next series of the source


@pytest.mark.parametrize("stated", [2, 21_460_000])
def test_series_numbers_of_parts_fit_into_their_attribute(stated, tmp_path):
    source = read_series(phantoms.corner_series(tmp_path / "in", SeriesNumber=stated).paths)

    assert all(0 < number < 2**31 for number in numbers_of(source, 1))


def test_the_first_part_has_the_number_of_a_series_of_one(source, tmp_path):
    alone, first = (
        phantoms.derive(source, tmp_path / str(place), job=job)
        for place, job in enumerate((phantoms.JOB, part(1)))
    )

    numbers = {pydicom.dcmread(one.written.paths[0]).SeriesNumber for one in (alone, first)}
    assert numbers == {201}
