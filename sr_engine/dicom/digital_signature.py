"""A DICOM digital signature of what we write: Creator RSA, with SHA-256 (PS3.15 C.2).

Any DICOM toolkit verifies it with the certificate's authority, without this program. It covers the
encoded instance but for the patient and the order, which archives correct. Whoever encodes the
pixels anew, or moves the study, breaks it; the seal of the private block stands that (`seal`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr, write_data_element
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRLittleEndian

from sr_engine.dicom.uids import digital_signature_uid

MAC_ID = 0  # any number: there is one signature
MAC_PARAMETERS, SIGNATURES = Tag(0x4FFE, 0x0001), Tag(0xFFFA, 0xFFFA)
ITEM, SEQUENCE_END = bytes.fromhex("FEFF00E0"), bytes.fromhex("FEFFDDE0")
LEFT_OUT_GROUPS = (0x0010, 0x0032, 0x0038)  # the patient and the order
LEFT_OUT = {
    Tag(keyword)
    for keyword in (
        "AccessionNumber",
        "InstitutionalDepartmentName",
        "PerformedProcedureStepDescription",
        "PerformedProcedureStepID",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "ReferringPhysicianName",
        "RequestAttributesSequence",
        "StudyDescription",
        "StudyID",
    )
}


@dataclass(frozen=True, kw_only=True)
class Notary:
    """Whoever signs: the certificate, and what makes an RSA signature of bytes (PKCS #1 v1.5)."""

    certificate: bytes  # X.509, DER
    sign: Callable[[bytes], bytes]  # hashes with SHA-256 first; the same bytes, the same signature
    at: datetime  # of every signature, so that a repeated attempt writes the same bytes


def sign(dataset: Dataset, notary: Notary) -> None:
    """Add the signature to a complete instance; nothing that is signed may change afterwards."""
    correct_ambiguous_vr(dataset, True)
    tags = signed_tags(dataset)
    parameters = Dataset()
    parameters.MACIDNumber = MAC_ID
    parameters.MACCalculationTransferSyntaxUID = ExplicitVRLittleEndian
    parameters.MACAlgorithm = "SHA256"
    parameters.DataElementsSigned = tags
    signature = Dataset()
    signature.MACIDNumber = MAC_ID
    signature.DigitalSignatureUID = digital_signature_uid(str(dataset.SOPInstanceUID))
    signature.DigitalSignatureDateTime = notary.at.strftime("%Y%m%d%H%M%S.%f%z")
    signature.CertificateType = "X509_1993_SIG"
    signed = b"".join(stream(dataset[tag]) for tag in tags)
    signed += b"".join(map(stream, signature))
    signature.CertificateOfSigner = even(notary.certificate)
    signature.Signature = even(notary.sign(signed))
    dataset.MACParametersSequence = [parameters]
    dataset.DigitalSignaturesSequence = [signature]


def signed_tags(dataset: Dataset) -> list[BaseTag]:
    """Return what is covered, in the order of the data set."""
    return [
        tag
        for tag in sorted(dataset.keys())
        if tag.group not in (*LEFT_OUT_GROUPS, SIGNATURES.group, MAC_PARAMETERS.group, 0xFFFC)
        and tag.group > 0x0007
        and tag.element
        and tag not in LEFT_OUT
    ]


def stream(element: DataElement) -> bytes:
    """Return an element as the MAC is computed of it, explicit VR little endian (PS3.15 C.1.1).

    Sequences and items have no lengths there; a sequence is ended by its delimiter.
    """
    if element.VR == "SQ":
        head = tag_bytes(element.tag) + b"SQ\x00\x00"
        items = [ITEM + b"".join(map(stream, item)) for item in cast(Items, element.value)]
        return head + b"".join(items) + SEQUENCE_END
    encoded = DicomBytesIO()
    encoded.is_little_endian, encoded.is_implicit_VR = True, False
    write_data_element(encoded, element)
    return encoded.getvalue()


def tag_bytes(tag: BaseTag) -> bytes:
    """Return a tag, little endian."""
    return tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")


def even(value: bytes) -> bytes:
    """Return a value of even length (PS3.5 7.1.1)."""
    return value + b"\x00" * (len(value) % 2)
