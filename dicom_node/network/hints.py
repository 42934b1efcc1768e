"""MPPS and Instance Availability Notification as SCP (PS3.4 F.7, R): which instances make a series.

A hint may end the waiting for a series, or name what is missing; it never adds an image.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import cast

from pydicom import Dataset
from pynetdicom.dimse_primitives import N_CREATE, N_SET
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    InstanceAvailabilityNotification,
    ModalityPerformedProcedureStep,
)

from dicom_node import telemetry
from dicom_node.errors import NodeError, StoreUnavailable
from dicom_node.network.commitment import (
    INSTANCE,
    CommitmentRefused,
    new_uid,
    references,
    refusing_damage,
    uid_in,
)
from dicom_node.settings import PeerSettings
from dicom_node.store import Store
from dicom_node.store.hints import COMPLETED, DISCONTINUED, IN_PROGRESS, StepRefused

CLASSES = (str(ModalityPerformedProcedureStep), str(InstanceAvailabilityNotification))
SUCCESS, RESOURCES, NOT_AUTHORISED, INVALID_VALUE = 0x0000, 0x0213, 0x0124, 0x0106
NO_SUCH_CLASS = 0x0118
MOST_INSTANCES = 50_000
STATES = (IN_PROGRESS, COMPLETED, DISCONTINUED)
IMAGES, OTHERS = "ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence"

log = telemetry.get_logger()
Answer = tuple[int, Dataset | None]


class HintScp:
    """Answers N-CREATE and N-SET of both services."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], datetime],
        peer_of: Callable[[Event], PeerSettings],
    ) -> None:
        self._store = store
        self._clock = clock
        self._peer_of = peer_of

    def on_create(self, event: Event) -> Answer:
        """Return the status of the response to an N-CREATE, and the attributes that it created."""
        return self._answer(event, self._create)

    def on_set(self, event: Event) -> Answer:
        """Return the status of the response to an N-SET."""
        return self._answer(event, self._set)

    def _answer(self, event: Event, take: Callable[[Event, str], Dataset | None]) -> Answer:
        peer = self._peer_of(event)
        try:
            if "source" not in peer.roles:
                raise StepRefused(f"{peer.name} is configured as no source", NOT_AUTHORISED)
            with refusing_damage():
                return SUCCESS, take(event, peer.name)
        except (StepRefused, CommitmentRefused) as error:
            return self._refused(peer, error)
        except StoreUnavailable as error:
            log.error("hint.refused", peer=peer.name, reason=str(error))
            return RESOURCES, None

    def _refused(self, peer: PeerSettings, error: NodeError) -> Answer:
        log.warning("hint.refused", peer=peer.name, reason=str(error), status=f"{error.status:04X}")
        return error.status, None

    def _create(self, event: Event, peer: str) -> Dataset:
        request = cast(N_CREATE, event.request)
        created = Dataset()
        uid = str(request.AffectedSOPInstanceUID or "")
        if not uid:
            uid = created.AffectedSOPInstanceUID = new_uid()
        said = event.attribute_list
        if request.AffectedSOPClassUID == InstanceAvailabilityNotification:
            self._store.hints.notify(uid, peer, available(said), self._clock())
        elif state_of(said) != IN_PROGRESS:
            raise StepRefused("a procedure step begins IN PROGRESS", INVALID_VALUE)
        else:
            self._store.hints.begin(uid, peer, self._clock())
        return created

    def _set(self, event: Event, peer: str) -> None:
        request = cast(N_SET, event.request)
        if request.RequestedSOPClassUID != ModalityPerformedProcedureStep:
            raise StepRefused("only a procedure step can be changed", NO_SUCH_CLASS)
        said = event.modification_list
        uid, state = str(request.RequestedSOPInstanceUID), state_of(said) or IN_PROGRESS
        self._store.hints.update(uid, peer, state, performed(said), self._clock())
        return None


def state_of(said: Dataset) -> str:
    """Return PerformedProcedureStepStatus; raise StepRefused if it is none of the standard's."""
    state = str(said.get("PerformedProcedureStepStatus") or "").strip()
    if state and state not in STATES:
        raise StepRefused("PerformedProcedureStepStatus is none of the standard's", INVALID_VALUE)
    return state


def performed(said: Dataset) -> Mapping[str, Sequence[str]]:
    """Return the instances of each series that an MPPS names."""
    return bounded(
        {
            uid_in(one, "SeriesInstanceUID"): [
                uid_in(item, INSTANCE)
                for keyword in (IMAGES, OTHERS)
                for item in references(one, keyword)
            ]
            for one in references(said, "PerformedSeriesSequence")
        }
    )


def available(said: Dataset) -> Mapping[str, Sequence[str]]:
    """Return the instances of each series that a notification says can be had."""
    return bounded(
        {
            uid_in(one, "SeriesInstanceUID"): [
                uid_in(item, INSTANCE)
                for item in references(one, "ReferencedSOPSequence")
                if item.get("InstanceAvailability") != "UNAVAILABLE"
            ]
            for one in references(said, "ReferencedSeriesSequence")
        }
    )


def bounded(series: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Return what was named, unless it is more than any examination has."""
    if sum(map(len, series.values())) > MOST_INSTANCES:
        raise StepRefused(f"more than {MOST_INSTANCES} instances are named", RESOURCES)
    return series
