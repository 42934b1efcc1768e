"""Asking a peer what it has: C-FIND at IMAGE level (PS3.4 C.4.1)."""

from pydicom import Dataset
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
)

from dicom_node.network import pynetdicom_scu
from dicom_node.network.connecting import AssociationFault, Timeouts
from dicom_node.retry import Fault
from dicom_node.settings import PeerSettings

PENDING, SUCCESS = (0xFF00, 0xFF01), 0x0000


def instances_at(
    peer: PeerSettings,
    calling_ae: str,
    study_uid: str,
    series_uid: str,
    timeouts: Timeouts,
) -> set[str]:
    """Return the SOP instance UIDs that the peer has of a series; an unknown series has none.

    Raises
    ------
    AssociationFault
        If the peer does not answer to the end.
    """
    model = StudyRootQueryRetrieveInformationModelFind
    association = pynetdicom_scu.associate(peer, calling_ae, [build_context(model)], timeouts)
    found: set[str] = set()
    last = None
    try:
        for status, answer in association.send_c_find(identifier(study_uid, series_uid), model):
            last = status.get("Status")
            if last in PENDING and answer is not None and "SOPInstanceUID" in answer:
                found.add(str(answer.SOPInstanceUID))
    except (RuntimeError, ValueError) as error:  # closed meanwhile
        raise AssociationFault(Fault.ABORTED, str(error), mid_way=True) from error
    finally:
        pynetdicom_scu.part(association)
    if last != SUCCESS:
        raise AssociationFault(Fault.TIMED_OUT if last is None else Fault.ABORTED, mid_way=True)
    return found


def identifier(study_uid: str, series_uid: str) -> Dataset:
    """Return the identifier that asks for every instance of a series."""
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "IMAGE"
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = series_uid
    dataset.SOPInstanceUID = ""
    return dataset
