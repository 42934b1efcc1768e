"""What a peer has of what we have sent it, asked by its own protocol: C-FIND or QIDO-RS."""

from collections.abc import Mapping, Sequence

from dicom_node.network import dicomweb, query
from dicom_node.network.connecting import Timeouts
from dicom_node.settings import PeerSettings


def instances_at(
    peer: PeerSettings,
    calling_ae: str,
    study_uid: str,
    by_series: Mapping[str, Sequence[str]],
    timeouts: Timeouts,
) -> set[str]:
    """Return the SOP instance UIDs that the peer has of some series of a study.

    Parameters
    ----------
    by_series
        The instances of each series that it should have.

    Raises
    ------
    AssociationFault
        If it does not say.
    """
    found: set[str] = set()
    for series_uid, wanted in by_series.items():
        if peer.is_web:
            found |= dicomweb.instances_at(peer, study_uid, series_uid, timeouts, wanted=wanted)
        else:
            found |= query.instances_at(peer, calling_ae, study_uid, series_uid, timeouts)
    return found
