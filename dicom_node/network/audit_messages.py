"""Rows of the audit trail as DICOM audit messages: who, what, when, how it ended, and no patient.

Source: PS3.15 A.5.1 (the schema), A.5.3 (the messages), CID 400 to 402 (the codes). The object
"Patient" of A.5.3.7 is left out: the trail does not know one. The study's UID names the data.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from xml.etree import ElementTree as xml

from dicom_node.store.audit import AuditRow
from dicom_node.store.audit_export import Transfer

CODES = {
    "110100": "Application Activity",
    "110103": "DICOM Instances Accessed",
    "110104": "DICOM Instances Transferred",
    "110105": "DICOM Study Deleted",
    "110113": "Security Alert",
    "110120": "Application Start",
    "110121": "Application Stop",
    "110126": "Node Authentication",
    "110131": "Software Configuration",
    "110150": "Application",
    "110152": "Destination Role ID",
    "110153": "Source Role ID",
    "110180": "Study Instance UID",
    "110182": "Node ID",
}
APPLICATION, TRANSFERRED, ALERT = "110100", "110104", "110113"
DELETED = {  # A.5.3.6: of a study that is deleted as a whole another message tells
    "retention.deleted": "110103",
    "retention.study_deleted": "110105",
}
SUCCESS, MINOR, SERIOUS = "0", "4", "8"  # EventOutcomeIndicator
SOURCE, DESTINATION, STUDY, NODE = "110153", "110152", "110180", "110182"


@dataclass(frozen=True, kw_only=True)
class Participant:
    """One process that took part."""

    name: str
    role: str
    requestor: bool = False
    address: str = ""


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a DICOM audit message says."""

    event: str
    kind: str = ""
    action: str = "E"
    outcome: str = SUCCESS
    participants: Sequence[Participant]
    transfer: Transfer | None = None
    node: str = ""  # the system that an alert is about


def message(row: AuditRow, ae_title: str, transfer: Transfer | None) -> Message | None:
    """Return what the audit row means to a collector; None for our own business."""
    us = Participant(name=ae_title, role="110150")
    fields = row.fields
    match row.event:
        case "service.start" | "service.stop":
            kind = "110120" if row.event == "service.start" else "110121"
            return Message(event=APPLICATION, kind=kind, participants=[us])
        case "association.refused":
            caller = str(fields.get("address", ""))
            them = Participant(name=caller, role=SOURCE, requestor=True, address=caller)
            return Message(
                event=ALERT, kind="110126", outcome=MINOR, participants=[us, them], node=caller
            )
        case "switch.set":
            return Message(event=ALERT, kind="110131", participants=[us], node=ae_title)
        case "instance.conflict":
            caller = str(fields.get("calling_ae", ""))
            return moved([caller], ae_title, transfer, action="C", outcome=SERIOUS)
        case "delivery.attempt":
            outcome = SENT_OUTCOMES.get(str(fields.get("outcome")), SERIOUS)
            to = str(fields.get("destination"))
            return moved([ae_title], to, transfer, action="R", outcome=outcome)
        case "retention.deleted" | "retention.study_deleted":
            deleter = replace(us, requestor=True)  # nobody asked for it but our settings
            event = DELETED[row.event]
            return Message(event=event, action="D", participants=[deleter], transfer=transfer)
    if is_arrival(row) and transfer:
        return moved(transfer.sources, ae_title, transfer, action="C")
    return None


def is_arrival(row: AuditRow) -> bool:
    """Return whether a received series is whole with this row; a note of ours never arrived."""
    left = row.event.startswith("job.") and row.fields.get("old") == "RECEIVING"
    return left and row.event != "job.reject"


SENT_OUTCOMES = {"sent": SUCCESS, "sent-with-warning": SUCCESS, "transient": MINOR}


def moved(
    sources: Sequence[str],
    destination: str,
    transfer: Transfer | None,
    *,
    action: str,
    outcome: str = SUCCESS,
) -> Message:
    """Return the message of a transfer; who sends has asked for it (A.5.3.7)."""
    senders = [Participant(name=name, role=SOURCE, requestor=True) for name in sources]
    receiver = Participant(name=destination, role=DESTINATION)
    return Message(
        event=TRANSFERRED,
        action=action,
        outcome=outcome,
        participants=[*senders, receiver],
        transfer=transfer,
    )


def to_xml(row: AuditRow, said: Message, source: str) -> bytes:
    """Return the XML document of a message, UTF-8 (A.5.1)."""
    root = xml.Element("AuditMessage")
    event = xml.SubElement(
        root,
        "EventIdentification",
        EventActionCode=said.action,
        EventDateTime=row.at.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=said.outcome,
    )
    code(event, "EventID", said.event)
    if said.kind:
        code(event, "EventTypeCode", said.kind)
    reason = str(row.fields.get("reason") or row.event)
    xml.SubElement(event, "EventOutcomeDescription").text = plain(reason)
    for one in said.participants:
        participant(root, one)
    xml.SubElement(root, "AuditSourceIdentification", AuditSourceID=plain(source))
    if said.transfer is not None:
        study(root, said.transfer, row)
    if said.node:
        alert_object(root, said.node, row)
    return xml.tostring(root, encoding="utf-8", xml_declaration=True)


def participant(root: xml.Element, one: Participant) -> None:
    """Add one ActiveParticipant."""
    requestor = "true" if one.requestor else "false"
    element = xml.SubElement(
        root, "ActiveParticipant", UserID=plain(one.name), UserIsRequestor=requestor
    )
    code(element, "RoleIDCode", one.role)
    if one.address:
        element.set("NetworkAccessPointID", plain(one.address))
        element.set("NetworkAccessPointTypeCode", "2")  # an IP address


def study(root: xml.Element, what: Transfer, row: AuditRow) -> None:
    """Add the study as the object, with series and instances counted by SOP class."""
    element = participant_object(root, what.study_uid, STUDY, role="3")
    for series_uid in what.series_uids:
        detail(element, "Series Instance UID", series_uid)
    if "sop" in row.fields:
        detail(element, "SOP Instance UID", str(row.fields["sop"]))
    description = xml.SubElement(element, "ParticipantObjectDescription")
    for sop_class, number in what.instances.items():
        xml.SubElement(description, "SOPClass", UID=sop_class, NumberOfInstances=str(number))


def alert_object(root: xml.Element, node: str, row: AuditRow) -> None:
    """Add the system that an alert is about, and its description (A.5.3.11)."""
    element = participant_object(root, node, NODE, role="9")  # 9: security resource
    told = [f"{name}={value}" for name, value in sorted(row.fields.items()) if name != "reason"]
    detail(element, "Alert Description", " ".join([row.event, *told]))


def participant_object(root: xml.Element, name: str, kind: str, *, role: str) -> xml.Element:
    """Return a new ParticipantObjectIdentification of a system object."""
    element = xml.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=plain(name),
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole=role,
    )
    code(element, "ParticipantObjectIDTypeCode", kind)
    xml.SubElement(element, "ParticipantObjectName").text = plain(name)
    return element


def detail(element: xml.Element, kind: str, value: str) -> None:
    """Add a detail; its value is base64, whatever it may contain."""
    encoded = base64.b64encode(value.encode()).decode()
    xml.SubElement(element, "ParticipantObjectDetail", type=kind, value=encoded)


def code(element: xml.Element, name: str, value: str) -> None:
    """Add a coded value of DCM."""
    attributes = {"csd-code": value, "codeSystemName": "DCM", "originalText": CODES[value]}
    xml.SubElement(element, name, attributes)


def plain(text: str) -> str:
    """Return `text` without characters that XML cannot carry."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
