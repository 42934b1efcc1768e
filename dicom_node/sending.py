"""What may leave now: the one switch that stops all that the node tells others on its own."""

from collections.abc import Mapping

from dicom_node.retry import describe
from dicom_node.settings import PeerSettings, Settings
from dicom_node.store import DeliveryTask, Store

SWITCH = "sending"  # `dicom-node send on|off`


def may_send(settings: Settings, store: Store) -> bool:
    """Return whether anything may leave now: neither shadow mode nor the switch forbids it."""
    sending = settings.sending
    return not sending.shadow and bool(store.switches.get(SWITCH, sending.enabled))


def may_look(task: DeliveryTask, peer: PeerSettings) -> bool:
    """Return whether what the peer says it has is left out of an attempt.

    Not after it denied its commitment for some of that: an index may name what the storage lost,
    and the same bytes under the same UIDs harm nobody. A DICOMweb server gave no other word.
    """
    return peer.query and (peer.is_web or not task.resends)


def warned(warnings: Mapping[int, int]) -> str:
    """Return what a destination said about instances that it took all the same."""
    said = [f"{count} with {describe(status)}" for status, count in warnings.items()]
    return f", {', '.join(said)}" if said else ""
