"""What a peer has of what we have sent it, asked by its own protocol: C-FIND or QIDO-RS."""

from collections.abc import Iterable

from dicom_node.network import dicomweb, query
from dicom_node.network.connecting import Timeouts
from dicom_node.settings import PeerSettings


def instances_at(
    peer: PeerSettings,
    calling_ae: str,
    study_uid: str,
    series_uids: Iterable[str],
    timeouts: Timeouts,
) -> set[str]:
    """Return the SOP instance UIDs that the peer has of some series of a study.

    Raises
    ------
    AssociationFault
        If it does not say.
    """
    found: set[str] = set()
    for series_uid in series_uids:
        if peer.is_web:
            found |= dicomweb.instances_at(peer, study_uid, series_uid, timeouts)
        else:
            found |= query.instances_at(peer, calling_ae, study_uid, series_uid, timeouts)
    return found
