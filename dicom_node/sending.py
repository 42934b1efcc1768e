"""The one switch that stops everything that the node tells others on its own."""

from dicom_node.settings import Settings
from dicom_node.store import Store

SWITCH = "sending"  # `dicom-node send on|off`


def may_send(settings: Settings, store: Store) -> bool:
    """Return whether anything may leave now: neither shadow mode nor the switch forbids it."""
    sending = settings.sending
    return not sending.shadow and bool(store.switches.get(SWITCH, sending.enabled))
