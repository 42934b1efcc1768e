"""The Enhanced MR form: the same pixels in the same places, for us and for everybody else."""

import shutil

import numpy as np
import pydicom
import pytest
from highdicom import Volume
from pydicom.uid import EnhancedMRImageStorage

from sr_engine.dicom.provenance import from_dataset
from sr_engine.dicom.reader import read_series
from sr_engine.errors import UnsupportedInput, WriteError
from tests import phantoms, variants
from tests.readers import READERS, placed

BOTH = ["classic", "enhanced"]
CLOSE_MM = 0.05


@pytest.fixture
def source(tmp_path):
    return read_series(phantoms.corner_series(tmp_path / "source", "double-oblique").paths)


@pytest.fixture
def image(source, tmp_path):
    return pydicom.dcmread(phantoms.derive(source, tmp_path, kinds=["enhanced"]).written.paths[0])


def marked(source):
    """Return a finer volume whose outermost voxels all differ."""
    volume = phantoms.finer(source)
    array = volume.array.copy()
    corners = np.ix_(*[(0, n - 1) for n in array.shape])
    array[corners] = np.arange(100, 900, 100).reshape(2, 2, 2)
    return Volume(
        array,
        volume.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=source.frame_of_reference_uid,
    )


def truth(volume):
    """Return what a reader must find: its corners."""
    return placed((np.transpose(volume.array, (2, 1, 0)), volume.affine[:, [2, 1, 0, 3]]))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("orientation", phantoms.ORIENTATIONS)
def test_independent_readers_find_both_forms_where_the_volume_is(reader, orientation, tmp_path):
    if reader == "dcm2niix" and not shutil.which(reader):
        pytest.skip("dcm2niix is not installed")
    series = read_series(phantoms.corner_series(tmp_path / "in", orientation).paths)
    volume = marked(series)

    derived = phantoms.derive(series, tmp_path / "out", volume=volume, kinds=BOTH)

    for written in derived.outputs:
        assert np.allclose(placed(READERS[reader](written.paths)), truth(volume), atol=CLOSE_MM)


@pytest.mark.parametrize("name", ["p01", "p02", "p03", "p04", "p06", "p35"])
def test_independent_readers_find_a_real_series_where_its_source_is(name, shared_series, tmp_path):
    source = read_series([shared_series(name)])

    derived = phantoms.derive(source, tmp_path, volume=source.volume, kinds=BOTH)

    expected = truth(source.volume)[:, :3]
    for written in derived.outputs:
        for reader, read in READERS.items():
            if reader != "dcm2niix" or shutil.which(reader):
                found = placed(read(written.paths))[:, :3]
                assert np.allclose(found, expected, atol=CLOSE_MM), (written.kind, reader)


def test_frames_are_the_slices_of_the_classic_series(source, tmp_path):
    classic, enhanced = phantoms.derive(source, tmp_path, kinds=BOTH).outputs

    image = pydicom.dcmread(enhanced.paths[0])
    slices = sorted(map(pydicom.dcmread, classic.paths), key=lambda one: one.InstanceNumber)

    assert image.SOPClassUID == enhanced.sop_class_uid == EnhancedMRImageStorage
    assert image.NumberOfFrames == len(slices)
    for number, one in enumerate(slices):
        frame = image.PerFrameFunctionalGroupsSequence[number]
        assert np.array_equal(image.pixel_array[number], one.pixel_array)
        assert frame.PlanePositionSequence[0].ImagePositionPatient == one.ImagePositionPatient
        assert frame.FrameContentSequence[0].InStackPositionNumber == one.InstanceNumber


def test_both_forms_are_of_one_result_and_say_so(source, tmp_path):
    derived = phantoms.derive(source, tmp_path, kinds=BOTH)
    first, second = (pydicom.dcmread(one.paths[0]) for one in derived.outputs)

    assert from_dataset(first) == from_dataset(second)
    assert from_dataset(first).series == {
        "classic": first.SeriesInstanceUID,
        "enhanced": second.SeriesInstanceUID,
    }
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.SeriesNumber != second.SeriesNumber
    for keyword in ("PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "SyntheticData"):
        assert first[keyword].value == second[keyword].value


def test_the_classic_series_does_not_depend_on_what_is_written_beside_it(source, tmp_path):
    alone = phantoms.derive(source, tmp_path / "a").written
    beside = phantoms.derive(source, tmp_path / "b", kinds=BOTH).written

    assert (alone.series_uid, alone.sop_uids) == (beside.series_uid, beside.sop_uids)


def test_twice_the_same_job_gives_the_same_bytes(source, tmp_path):
    one = phantoms.derive(source, tmp_path / "a", kinds=["enhanced"]).written.paths[0]
    other = phantoms.derive(source, tmp_path / "b", kinds=["enhanced"]).written.paths[0]

    assert one.read_bytes() == other.read_bytes()


def test_a_stack_that_counts_backwards_does_so_in_frames(tmp_path):
    phantom = phantoms.corner_series(tmp_path / "in")
    count = len(phantom.paths)
    for path in phantom.paths:
        phantoms.edit(path, lambda d: setattr(d, "InstanceNumber", count + 1 - d.InstanceNumber))

    derived = phantoms.derive(read_series(phantom.paths), tmp_path / "out", kinds=["enhanced"])

    frames = pydicom.dcmread(derived.written.paths[0]).PerFrameFunctionalGroupsSequence
    positions = [frame.PlanePositionSequence[0].ImagePositionPatient[2] for frame in frames]
    assert positions == sorted(positions, reverse=True)


def test_what_was_acquired_stays_as_acquired(image, source):
    scanner, shared = source.headers[0], image.SharedFunctionalGroupsSequence[0]

    for keyword in ("MagneticFieldStrength", "RepetitionTime", "InversionTime", "FlipAngle"):
        assert image[keyword].value == scanner[keyword].value
    assert shared.MREchoSequence[0].EffectiveEchoTime == float(scanner.EchoTime)
    assert image.ResonantNucleus == "1H"
    assert image.AcquisitionDateTime == scanner.AcquisitionDate + scanner.AcquisitionTime


def values_of(dataset, keywords):
    return {keyword: dataset[keyword].value for keyword in keywords if keyword in dataset}


def test_an_image_after_contrast_says_so(tmp_path):
    paths = phantoms.corner_series(tmp_path / "in", **phantoms.CONTRAST).paths

    outputs = phantoms.derive(read_series(paths), tmp_path / "out", kinds=BOTH).outputs

    stated = values_of(pydicom.dcmread(paths[0]), phantoms.CONTRAST)
    assert set(stated) == set(phantoms.CONTRAST)
    for written in outputs:
        assert values_of(pydicom.dcmread(written.paths[0]), phantoms.CONTRAST) == stated


def test_contrast_that_only_one_slice_names_is_not_lost(tmp_path):
    paths = phantoms.corner_series(tmp_path / "in", ContrastBolusAgent="").paths
    phantoms.edit(paths[5], lambda one: setattr(one, "ContrastBolusAgent", "Gadobutrol"))

    outputs = phantoms.derive(read_series(paths), tmp_path / "out", kinds=BOTH).outputs

    for written in outputs:
        assert pydicom.dcmread(written.paths[0]).ContrastBolusAgent == "Gadobutrol"


def test_a_coded_agent_gets_what_an_enhanced_image_must_have(tmp_path):
    paths = phantoms.corner_series(
        tmp_path / "in", ContrastBolusAgentSequence=[phantoms.GADOLINIUM]
    ).paths

    classic, enhanced = phantoms.derive(read_series(paths), tmp_path / "out", kinds=BOTH).outputs

    (same,) = pydicom.dcmread(classic.paths[0]).ContrastBolusAgentSequence
    (agent,) = pydicom.dcmread(enhanced.paths[0]).ContrastBolusAgentSequence
    assert same == phantoms.GADOLINIUM
    assert (agent.CodeValue, agent.ContrastBolusAgentNumber) == ("418888003", 1)
    assert agent.ContrastBolusAdministrationRouteSequence[0].CodeMeaning == "Unknown"


def test_a_route_that_is_coded_beside_the_agent_is_the_agents(tmp_path):
    route = phantoms.coded("47625008", "Intravenous route")
    paths = phantoms.corner_series(
        tmp_path / "in",
        ContrastBolusAgentSequence=[phantoms.GADOLINIUM],
        ContrastBolusAdministrationRouteSequence=[route],
    ).paths

    written = phantoms.derive(read_series(paths), tmp_path / "out", kinds=["enhanced"]).written

    image = pydicom.dcmread(written.paths[0])
    (agent,) = image.ContrastBolusAgentSequence
    assert list(agent.ContrastBolusAdministrationRouteSequence) == [route]
    assert "ContrastBolusAdministrationRouteSequence" not in image


@pytest.mark.parametrize(("said", "named"), [("YES", "Gadobutrol"), ("NO", "")])
def test_an_agent_that_was_injected_later_is_not_said_to_be_in_the_image(said, named, tmp_path):
    paths = phantoms.corner_series(tmp_path / "in").paths
    agents = [phantoms.ENHANCED_GADOLINIUM]
    source = variants.write_enhanced(paths, tmp_path / "1.dcm", ContrastBolusAgentSequence=agents)
    use = pydicom.Dataset()
    use.ContrastBolusAgentNumber, use.ContrastBolusAgentAdministered = 1, said

    def state(image):
        image.SharedFunctionalGroupsSequence[0].ContrastBolusUsageSequence = [use]

    phantoms.edit(source, state)

    outputs = phantoms.derive(read_series([source]), tmp_path / "out", kinds=BOTH).outputs

    classic, enhanced = (pydicom.dcmread(one.paths[0]) for one in outputs)
    (told,) = enhanced.SharedFunctionalGroupsSequence[0].ContrastBolusUsageSequence
    assert told.ContrastBolusAgentAdministered == said
    assert classic.get("ContrastBolusAgent", "") == enhanced.get("ContrastBolusAgent", "") == named


def test_the_agent_of_an_enhanced_source_is_kept_and_named(tmp_path):
    paths = phantoms.corner_series(tmp_path / "in").paths
    agents = [phantoms.ENHANCED_GADOLINIUM]
    source = [variants.write_enhanced(paths, tmp_path / "1.dcm", ContrastBolusAgentSequence=agents)]

    outputs = phantoms.derive(read_series(source), tmp_path / "out", kinds=BOTH).outputs

    for written in outputs:
        image = pydicom.dcmread(written.paths[0])
        assert list(image.ContrastBolusAgentSequence) == agents
        assert image.ContrastBolusAgent == "Gadobutrol"


def test_derivation_names_every_source_instance(image, source):
    (group,) = image.SharedFunctionalGroupsSequence[0].DerivationImageSequence
    named = [one.ReferencedSOPInstanceUID for one in group.SourceImageSequence]
    (study,) = image.SourceImageEvidenceSequence
    (series,) = study.ReferencedSeriesSequence

    assert tuple(named) == source.sop_uids
    assert "not for diagnosis" in group.DerivationDescription
    assert series.SeriesInstanceUID == source.series_uid
    assert tuple(one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence) == (
        source.sop_uids
    )


def test_no_one_enhances_an_enhanced_result_again(source, tmp_path):
    written = phantoms.derive(source, tmp_path, kinds=["enhanced"]).written

    with pytest.raises(UnsupportedInput, match="already the output"):
        read_series(written.paths)


def test_a_companion_without_an_image_is_refused(source, tmp_path):
    with pytest.raises(WriteError, match="no image is written"):
        phantoms.derive(source, tmp_path, kinds=["classic+report"])
