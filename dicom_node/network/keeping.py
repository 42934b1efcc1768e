"""A C-STORE of a known peer, on whatever association it comes: kept, then answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

from pydicom import Dataset
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from dicom_node import telemetry
from dicom_node.content import split
from dicom_node.errors import InstanceRejected, NotAnInstance
from dicom_node.intake import Incoming, Taken, take_in, take_in_meanwhile
from dicom_node.network.dimse import one_line
from dicom_node.network.storage import UNABLE_TO_PROCESS, Answer, Arrived
from dicom_node.pixel_files import PixelFiles
from dicom_node.settings import PeerSettings
from dicom_node.store import Store

NOT_AUTHORISED, NO_SUCH_OPERATION = 0x0124, 0x0211

NO_SUCH_CLASS, NO_SUCH_SYNTAX = 0x0122, 0xC122  # PS3.18 table I.2-2
FILE_META = {"sop_class": "MediaStorageSOPClassUID", "sop_uid": "MediaStorageSOPInstanceUID"}

log = telemetry.get_logger()


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """What is taken from where nothing is negotiated, and where it is kept."""

    classes: Sequence[str]
    syntaxes: Sequence[str]
    files: PixelFiles


def keep(
    peer: PeerSettings, arrived: Arrived, files: PixelFiles, store: Store, now: datetime
) -> Answer:
    """Return 0x0000 when the instance is durable, else why not."""
    if "source" not in peer.roles:
        return unauthorised(peer)
    try:
        return Answer(status=take_in(incoming(peer, arrived), files, store, now).status)
    except InstanceRejected as error:
        return Answer(status=error.status, comment=str(error))


def keep_meanwhile(
    peer: PeerSettings,
    arrived: Arrived,
    files: PixelFiles,
    store: Store,
    now: datetime,
    reply: Callable[[Answer], None],
) -> None:
    """Give the same answer as `keep` to `reply`, as `intake.take_in_meanwhile` does."""

    def then(taken: Taken | Exception) -> None:
        if isinstance(taken, Taken):
            reply(Answer(status=taken.status))
        elif isinstance(taken, InstanceRejected):
            reply(Answer(status=taken.status, comment=str(taken)))
        else:  # no success, and the association goes on
            reply(Answer(status=UNABLE_TO_PROCESS))
            log.error("instance.failed", peer=peer.name, exc_info=taken)

    if "source" not in peer.roles:
        reply(unauthorised(peer))
        return
    take_in_meanwhile(incoming(peer, arrived), files, store, now, then)


def unauthorised(peer: PeerSettings) -> Answer:
    """Return what a peer hears that may not send images."""
    log.warning("instance.unauthorised", peer=peer.name)
    return Answer(status=NOT_AUTHORISED, comment=f"{peer.name} is configured as no source")


def incoming(peer: PeerSettings, arrived: Arrived) -> Incoming:
    """Return what arrived in a C-STORE as `intake` wants it."""
    return Incoming(
        encoded=arrived.encoded,
        transfer_syntax=arrived.transfer_syntax,
        calling_ae=peer.calling,
        sop_class=arrived.sop_class,
        sop_uid=arrived.sop_uid,
    )


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What became of a DICOM file; names are empty where it says none."""

    status: int
    comment: str = ""
    sop_class: str = ""
    sop_uid: str = ""


def keep_file(
    file: bytes,
    calling: str,
    accepted: Accepted,
    store: Store,
    now: datetime,
    *,
    study_uid: str | None = None,
) -> Kept:
    """Return what became of a DICOM file that came without a negotiation.

    Parameters
    ----------
    calling
        From whom it is: the name stands where an AE title stands otherwise.
    study_uid
        The study that it must be of; None: any.
    """
    names = {"sop_class": "", "sop_uid": ""}
    try:
        meta, encoded = split(BytesIO(file))
        syntax = str(meta.TransferSyntaxUID)
        names = {key: str(meta.get(keyword, "")) for key, keyword in FILE_META.items()}
        if not all(names.values()):
            raise NotAnInstance("the file meta information names no instance")
        if names["sop_class"] not in accepted.classes:
            return Kept(status=NO_SUCH_CLASS, comment=f"SOP class {names['sop_class']}", **names)
        if syntax not in accepted.syntaxes:
            return Kept(status=NO_SUCH_SYNTAX, comment=f"transfer syntax {syntax}", **names)
        given = Incoming(
            encoded=encoded,
            transfer_syntax=syntax,
            calling_ae=calling,
            study_uid=study_uid,
            sop_class=names["sop_class"],
            sop_uid=names["sop_uid"],
        )
        return Kept(status=take_in(given, accepted.files, store, now).status, **names)
    except InstanceRejected as error:
        return Kept(status=error.status, comment=str(error), **names)


def arrived_in(event: Event) -> Arrived | None:
    """Return what a C-STORE brought on an association of pynetdicom; None for another command."""
    request = event.request
    if not isinstance(request, C_STORE):
        return None
    return Arrived(
        sop_class=str(request.AffectedSOPClassUID),
        sop_uid=str(request.AffectedSOPInstanceUID),
        transfer_syntax=str(event.context.transfer_syntax),
        encoded=request.DataSet.getvalue() if request.DataSet else b"",
    )


def as_dataset(answer: Answer) -> int | Dataset:
    """Return the answer as pynetdicom wants it."""
    if not answer.comment:
        return answer.status
    dataset = Dataset()
    dataset.Status = answer.status
    dataset.ErrorComment = one_line(answer.comment)
    return dataset
