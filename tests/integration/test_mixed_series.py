"""A series with more than one thing inside, from its files to what is published."""

from datetime import UTC, datetime, timedelta

import pydicom
import pytest

from dicom_node import assembly
from dicom_node.intake import submit_file
from dicom_node.pixel_files import PixelFiles
from dicom_node.store import open_store
from dicom_node.worker import Worker
from tests import variants
from tests.integration import marks
from tests.rigs import rig_settings

ANY_MR = {"name": "any MR", "when": {"modality": ["MR"]}, "action": "enhance"}
PHASE = variants.setting(ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "Enhanced"])
def test_the_magnitude_is_computed_from_and_everything_else_is_kept(
    enhanced, small_weights, tmp_path
):
    volume, _ = marks.marked_volume("double-oblique")
    magnitude = marks.write_marked(tmp_path / "in", volume)
    phase = variants.add_copies(
        magnitude, "phase", variants.setting(ComplexImageComponent="PHASE") if enhanced else PHASE
    )
    sent = [*phase, *magnitude]
    if enhanced:
        sent = [variants.write_enhanced(sent, tmp_path / "enhanced" / "1.dcm")]
    sent += [variants.add_copy(magnitude[0], "raw", variants.raw_data)]
    settings = rig_settings(
        tmp_path / "node",
        engine={"weights": str(small_weights), "steps": 1, "device": "cpu", "spacing_mm": 2.0},
        rules=[ANY_MR],
    )
    store = open_store(settings.database_url)
    files = PixelFiles(settings.node.state_dir / "in", 0)
    for path in sent:
        submit_file(path, files, store, datetime.now(UTC))
    later = datetime.now(UTC) + timedelta(seconds=2 * settings.assembly.idle_s)
    (job_id,) = assembly.tick(store, settings, later)
    told = store.jobs.get(job_id).reason

    assert Worker(settings, store).run_once()

    (row,) = store.series.listing()
    derived = pydicom.dcmread(store.jobs.derived(job_id)[0].path)
    store.close()
    assert row["state"] in ("DERIVED", "DELIVERED"), row["reason"]
    assert "24 (phase, real or imaginary)" in told and "1 (no MR image)" in told
    named = {item.ReferencedSOPInstanceUID for item in derived.SourceImageSequence}
    meant = [sent[0]] if enhanced else magnitude
    assert named == {pydicom.dcmread(path).SOPInstanceUID for path in meant}
    assert row["instances"] == len(sent)
