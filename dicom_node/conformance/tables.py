"""Tables of the Conformance Statement that come from the configuration alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.charset import python_encoding

from dicom_node.content import IMPLEMENTATION_NAME, IMPLEMENTATION_UID
from dicom_node.network import scp
from dicom_node.network.tls import CIPHERS
from dicom_node.settings import PeerSettings, Settings

YES_NO = {True: "yes", False: "no"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table and the sentence that stands before it."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def to_markdown(self) -> str:
        """Return the table as Markdown; without rows it says so."""
        lines = [self.note, ""] if self.note else []
        if not self.rows:
            return "\n".join([*lines, "None.", ""])
        lines += [row_text(self.head), row_text(("---",) * len(self.head))]
        lines += [row_text(row) for row in self.rows]
        return "\n".join([*lines, ""])


def row_text(cells: Sequence[str]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def overview(settings: Settings) -> list[Table]:
    """Return the network services in a few lines."""
    rows = [
        ("Verification", "yes", "yes"),
        ("Storage", "yes: results, forwarded originals, rejection notes", "yes"),
        ("Storage Commitment Push Model", "yes", "yes"),
        ("Query/Retrieve, Study Root: C-FIND", "yes: pull, and peers with query = true", "no"),
        ("Query/Retrieve, Study Root: C-MOVE, C-GET", "yes: pull, as the peer's retrieve", "no"),
        ("Modality Performed Procedure Step", "no", "yes: a hint that a series is whole"),
        ("Instance Availability Notification", "no", "yes: a hint that a series is whole"),
        ("STOW-RS", "yes, to peers with protocol = dicomweb", YES_NO[settings.web.stow]),
        ("QIDO-RS, WADO-RS", "yes, of peers with protocol = dicomweb", "no"),
        ("Unified Procedure Step: UPS Pull, UPS-RS", "yes, of peers with a worklist_code", "no"),
    ]
    note = (
        "A node between scanners and archives: it receives MR series, makes derived series of them "
        "and sends these to the archives. It has no media services."
    )
    return [Table(head=("service", "as user (SCU)", "as provider (SCP)"), rows=rows, note=note)]


def entities(settings: Settings) -> list[Table]:
    """Return our application entity."""
    node, tls = settings.node, settings.tls
    rows = [
        ("AE title", node.ae_title),
        ("listens at", f"{node.host}:{node.port}"),
        ("listens with TLS at", f"{node.host}:{tls.port}" if tls.enabled else "not configured"),
        ("application context", "1.2.840.10008.3.1.1.1"),
        ("implementation in associations that it accepts", scp.implementation(settings)),
        ("implementation in associations to send", f"{IMPLEMENTATION_UID} ({IMPLEMENTATION_NAME})"),
        (
            "implementation in associations to query, retrieve and ask for commitment",
            scp.implementation(settings),
        ),
        (
            "implementation in files that it receives, and of rejection notes",
            f"{IMPLEMENTATION_UID} ({IMPLEMENTATION_NAME})",
        ),
        ("implementation in files that it derives", "see 15"),
        ("maximum PDU length offered", f"{node.max_pdu_bytes} bytes"),
    ]
    note = "One application entity, which receives under this title and sends under it."
    return [Table(head=("what", "value"), rows=rows, note=note)]


def association_policies(settings: Settings) -> list[Table]:
    """Return the limits of associations that we accept and that we ask for."""
    node, limits = settings.node, settings.limits
    sending, commitment = settings.sending, settings.commitment
    rows = [
        ("associations at one time", str(node.max_associations), "node.max_associations"),
        ("of one peer", str(limits.associations_per_peer), "limits.associations_per_peer"),
        ("to ask for one, or answer", f"{node.acse_timeout_s:g} s", "node.acse_timeout_s"),
        ("of silence", f"{node.network_timeout_s:g} s", "node.network_timeout_s"),
        ("longest request", f"{limits.request_bytes} bytes", "limits.request_bytes"),
        ("longest PDU", f"{limits.pdu_bytes} bytes", "limits.pdu_bytes"),
        ("for one PDU", f"{limits.pdu_s:g} s", "limits.pdu_s"),
        ("largest message", f"{limits.message_bytes} bytes", "limits.message_bytes"),
        ("slowest message", f"{limits.message_bytes_per_s} bytes/s", "limits.message_bytes_per_s"),
        ("for an answer to one instance", f"{sending.timeout_s:g} s", "sending.timeout_s"),
        ("before another attempt", pause(settings), "sending.backoff_first_s, backoff_last_s"),
        ("attempts", str(sending.max_attempts), "sending.max_attempts"),
        (
            "before what was not committed is sent again",
            f"{commitment.resend_first_s / 2:g} to {sending.backoff_last_s:g} s, longer each time",
            "commitment.resend_first_s, sending.backoff_last_s",
        ),
        ("the same, how often", str(commitment.max_resends), "commitment.max_resends"),
    ]
    note = (
        "Asynchronous operations, extended negotiation and user identity are not negotiated; role "
        "selection for storage commitment and C-GET alone. A destination is sent to over as many "
        "associations at a time as its `associations` says, "
        f"{sending.max_associations} to all of them together (sending.max_associations)."
    )
    return [Table(head=("limit", "value", "setting"), rows=rows, note=note)]


def pause(settings: Settings) -> str:
    """Return between which limits a pause is."""
    sending = settings.sending
    return f"{sending.backoff_first_s:g} to {sending.backoff_last_s:g} s, random"


def remote_entities(settings: Settings) -> list[Table]:
    """Return every peer of the configuration, with all that it states."""
    names = [name for name in PeerSettings.model_fields if name != "name"]
    rows = [
        (peer.name, *(value_text(getattr(peer, name)) for name in names)) for peer in settings.peers
    ]
    note = "Nobody else is accepted, or sent to."
    return [Table(head=("name", *(n.replace("_", " ") for n in names)), rows=rows, note=note)]


def value_text(value: object) -> str:
    """Return a setting as people read it."""
    if isinstance(value, bool):
        return YES_NO[value]
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value not in ("", None) else "-"


def character_sets(settings: Settings) -> list[Table]:
    """Return the character sets that are decoded."""
    note = (
        "Specific Character Set (0008,0005) and the patient's texts are copied byte for byte into "
        "what is derived. No series is refused for its character set; these are decoded:"
    )
    rows = [(name or "ISO-IR 6 (not stated)",) for name in sorted(python_encoding)]
    return [Table(head=("defined term",), rows=rows, note=note)]


def security(settings: Settings) -> list[Table]:
    """Return what protects the network side."""
    audit = settings.audit
    exported = f"{audit.syslog_host}:{audit.syslog_port}" if audit.syslog_host else "off"
    rows = [
        ("secure transport", "TLS 1.2 and 1.3, mutual authentication (PS3.15 B.12)"),
        ("TLS 1.2 cipher suites", CIPHERS.replace(":", ", ")),
        ("TLS here", "configured" if settings.tls.enabled else "not configured"),
        ("admission", "calling AE title, called AE title, address, certificate"),
        ("audit trail messages", f"PS3.15 A.5 over syslog: {exported}"),
        ("digital signatures", digital_signatures(settings)),
        ("de-identification", "none"),
    ]
    return [Table(head=("what", "how"), rows=rows)]


def digital_signatures(settings: Settings) -> str:
    """Return what results are signed with."""
    also = "results carry a signed hash (docs/security.md)"
    if settings.signing.enabled:
        return f"Creator RSA (PS3.15 C.2), SHA-256, on results; besides, {also}"
    return f"none configured ([signing]: Creator RSA, PS3.15 C.2); {also}"
