"""Headers of slices with known places, as the store keeps them."""

from dicom_node.assembly import InstanceHeader

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
SAGITTAL = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]
BASE = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
    "Modality": "MR",
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "MagneticFieldStrength": 1.5,
    "BodyPartExamined": "BRAIN",
    "MRAcquisitionType": "3D",
    "ScanningSequence": ["GR", "IR"],
    "RepetitionTime": 1900.0,
    "EchoTime": 2.97,
    "InversionTime": 1100.0,
    "Rows": 256,
    "Columns": 256,
    "PixelSpacing": [1.0, 1.0],
    "ImageOrientationPatient": AXIAL,
    "FrameOfReferenceUID": "1.2.9",
    "AcquisitionNumber": 1,
}
ENHANCED = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1"}


def slice_at(place_mm: float, number: int = 1, **changes) -> InstanceHeader:
    header = BASE | {"ImagePositionPatient": [-100.0, -120.0, place_mm], "InstanceNumber": number}
    return InstanceHeader(sop_uid=f"1.2.3.{number}", header=header | changes)


def stack(places_mm, **changes) -> list[InstanceHeader]:
    return [slice_at(float(place), i + 1, **changes) for i, place in enumerate(places_mm)]


def enhanced(places_mm, **changes) -> list[InstanceHeader]:
    frames = [{"ImagePositionPatient": [0.0, 0.0, float(place)]} for place in places_mm]
    header = BASE | ENHANCED | {"frames": frames, "NumberOfFrames": len(frames)} | changes
    return [InstanceHeader(sop_uid="1.2.3.1", header=header)]
