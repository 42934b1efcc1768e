"""Tables of the Conformance Statement that come from the code which negotiates and answers."""

from collections.abc import Iterator, Sequence

from pydicom.uid import UID

from dicom_node import errors, rejection_notes
from dicom_node.conformance.tables import Table
from dicom_node.errors import InstanceRejected
from dicom_node.network import keeping, peers, scp, storage
from dicom_node.network.commitment import SYNTAXES
from dicom_node.retry import COMMITMENT_FAILURES, FAULTS
from dicom_node.settings import Settings

# What we send of our own; forwarded originals go in the class and syntax they came in.
SENT = {
    "1.2.840.10008.5.1.4.1.1.4": "derived series, form = classic",
    "1.2.840.10008.5.1.4.1.1.4.1": "derived series, form = enhanced",
    "1.2.840.10008.5.1.4.1.1.30": "companion spread",
    "1.2.840.10008.5.1.4.1.1.11.1": "companion presentation",
    "1.2.840.10008.5.1.4.1.1.88.22": "companion report",
    rejection_notes.KEY_OBJECT_SELECTION: "rejection notes, companion key_objects",
}
# Image Type of the images among them; a test holds it equal to what the engine writes.
IMAGE_TYPES = {
    "1.2.840.10008.5.1.4.1.1.4": r"DERIVED\SECONDARY\OTHER\AI_SR",
    "1.2.840.10008.5.1.4.1.1.4.1": r"DERIVED\PRIMARY\VOLUME\RESAMPLED",
    "1.2.840.10008.5.1.4.1.1.30": r"DERIVED\PRIMARY\VOLUME\QUANTITY",
}
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
COMMITMENT, VERIFICATION = "1.2.840.10008.1.20.1", "1.2.840.10008.1.1"
UPS_PULL = "1.2.840.10008.5.1.4.34.6.3"
EVERY, FEW = "all storage classes of section 3", 6  # more names than that tell nobody anything
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE, GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
COMMITTED = {0x0110: "nobody keeps it for good", 0x0112: "we do not know it",
             0x0119: "it is of another class"}  # fmt: skip


def named(uid: str) -> tuple[str, str]:
    """Return the name and the UID of a SOP class or transfer syntax."""
    return UID(uid).name, uid


def accepted(settings: Settings) -> list[Table]:
    """Return every SOP class that the listener accepts."""
    rows = []
    for abstract, syntaxes in scp.accepted_contexts(settings).items():
        role = "SCP and SCU" if abstract == COMMITMENT else "SCP"
        rows.append((*named(abstract), role, f"{len(syntaxes)}, see 4"))
    note = (
        "`node.storage_classes` says which storage classes are accepted. What is stored is kept as "
        "received: every attribute, private ones included (level 2, full)."
    )
    return [Table(head=("SOP class", "UID", "role", "transfer syntaxes"), rows=rows, note=note)]


def transfer_syntaxes(settings: Settings) -> list[Table]:
    """Return the transfer syntaxes in the order of preference, for each group of SOP classes."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for abstract, syntaxes in scp.accepted_contexts(settings).items():
        groups.setdefault(syntaxes, []).append(UID(abstract).name)
    return [
        Table(
            head=("transfer syntax", "UID"),
            rows=[named(syntax) for syntax in syntaxes],
            note=f"{_together(names)}; the first that the peer proposes, too, is taken:",
        )
        for syntaxes, names in groups.items()
    ]


def _together(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= FEW else EVERY


def proposed(settings: Settings) -> list[Table]:
    """Return every SOP class that we propose."""
    usual = ", ".join(UID(each).name for each in scp.accepted_contexts(settings)[VERIFICATION])
    rows = [(*named(VERIFICATION), "`dicom-node echo`", usual)]
    rows += [(*named(uid), what, UID(EXPLICIT_LITTLE).name) for uid, what in SENT.items()]
    rows.append((EVERY, "", "originals, where a rule says forward", "as received"))
    both = ", ".join(UID(str(syntax)).name for syntax in SYNTAXES)
    rows.append((*named(COMMITMENT), "of destinations with commitment = true", both))
    rows.append((*named(FIND), "of destinations with query = true, and to pull", usual))
    rows.append((*named(MOVE), "to pull from peers with retrieve = move", usual))
    rows.append((*named(GET), "to pull from peers with retrieve = get", usual))
    rows.append((EVERY, "", "what a C-GET brings, as SCP (see 12)", "those of section 4"))
    note = "One presentation context for each SOP class and transfer syntax of what is to be sent."
    rows.append((*named(UPS_PULL), "of peers with a worklist_code", both))
    head = ("SOP class", "UID", "for", "transfer syntaxes")
    return [Table(head=head, rows=rows, note=note)]


def rejections(settings: Settings) -> list[Table]:
    """Return with which result, source and reason associations are rejected."""
    found = [each for each in vars(peers).values() if isinstance(each, peers.Rejection)]
    rows = [(str(r.result), str(r.source), str(r.reason), r.why) for r in found]
    rows.append(("1", "1", "7", "the called AE title is not ours"))
    rows.append(("1", "1", "3", "the calling AE title, its address or certificate is not known"))
    head = ("result", "source", "reason", "when")
    return [Table(head=head, rows=rows, note="A-ASSOCIATE-RJ (PS3.8 9.3.4).")]


def statuses_returned(settings: Settings) -> list[Table]:
    """Return every status with which a C-STORE is answered."""
    rows = [(f"{storage.SUCCESS:04X}", "Success", "the instance would survive a power cut")]
    for kind in refusals():
        words = (kind.__doc__ or "").strip().splitlines()[0].replace("`status` (PS3.4 B.2.3)", "it")
        rows.append((f"{kind.status:04X}", "Failure", words))
    rows += [
        (f"{keeping.NOT_AUTHORISED:04X}", "Failure", "the peer is configured as no source"),
        (f"{storage.NO_SUCH_CLASS:04X}", "Failure", "no such SOP class on this association"),
        (
            f"{storage.NO_SUCH_OPERATION:04X}",
            "Failure",
            "another operation than C-STORE on a storage class, or than C-ECHO on Verification",
        ),
        (
            f"{storage.UNABLE_TO_PROCESS:04X}",
            "Failure",
            "an error of ours; nothing was kept",
        ),
    ]
    note = (
        "The same instance again is Success. An image that differs in patient or study data alone "
        "is a correction: Success, and what was derived is withdrawn and made again."
    )
    return [Table(head=("status", "kind", "meaning"), rows=rows, note=note)]


def refusals() -> Iterator[type[InstanceRejected]]:
    """Yield the refusals of an instance, each of which knows its status."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, InstanceRejected):
            yield kind


def statuses_understood(settings: Settings) -> list[Table]:
    """Return what the sender makes of every answer, or of the lack of one."""
    rows = []
    for key, meaning in FAULTS.items():
        code = str(key) if not isinstance(key, tuple) else code_range(*key)
        rows.append((code, meaning.text, meaning.verdict.value))
    note = "Transient: what is missing is tried again. Permanent: the delivery has failed."
    return [Table(head=("status or fault", "meaning", "the delivery is"), rows=rows, note=note)]


def code_range(first: int, last: int) -> str:
    """Return one status, or two ends of many."""
    return f"{first:04X}" if first == last else f"{first:04X} to {last:04X}"


def commitment(settings: Settings) -> list[Table]:
    """Return the failure reasons that we understand, and those that we give."""
    theirs = [(f"{c:04X}", text, cure.value) for c, (cure, text) in COMMITMENT_FAILURES.items()]
    ours = [(f"{code:04X}", text) for code, text in COMMITTED.items()]
    return [
        Table(
            head=("failure reason", "meaning", "what we do"),
            rows=theirs,
            note=(
                "As user: the N-EVENT-REPORT is taken on the association of the N-ACTION, or on "
                "one that the archive opens. Without an answer in "
                f"{settings.commitment.timeout_s:g} s it is asked again."
            ),
        ),
        Table(
            head=("failure reason", "meaning"),
            rows=ours,
            note=(
                "As provider: answered at the latest after "
                f"{settings.commitment.answer_within_s:g} s, on the peer's own association while "
                "it is open, else at its host and port."
            ),
        ),
    ]


def iocm(settings: Settings) -> list[Table]:
    """Return which Key Object Selections withdraw something."""
    rows = [(code, "DCM", text) for code, text in rejection_notes.TITLES.items()]
    taken = rejection_notes.KEY_OBJECT_SELECTION in scp.storage_classes(settings)
    note = (
        "A Key Object Selection with one of these titles (PS3.16 CID 7010) withdraws what was "
        "derived from the images it names, and is passed on about the derived series under the "
        f"same title. Accepted by this configuration: {'yes' if taken else 'no'}. A recall of "
        f"weights is told under {rejection_notes.SAFETY}."
    )
    return [Table(head=("code", "scheme", "title"), rows=rows, note=note)]


def derived_objects(settings: Settings) -> list[Table]:
    """Return the IODs that we make, and where the attributes of a derived image come from."""
    from sr_engine.dicom import attributes, uids

    objects = [(*named(uid), what, IMAGE_TYPES.get(uid, "-")) for uid, what in SENT.items()]
    copied = [(name,) for name in attributes.COPIED]
    groups = ", ".join(f"{group:04X}" for group in attributes.COPIED_GROUPS)
    return [
        Table(
            head=("IOD", "SOP class UID", "what", "Image Type"),
            rows=objects,
            note=(
                "The files of derived series state the implementation class UID "
                f"{uids.IMPLEMENTATION_CLASS_UID} and the implementation version name "
                f"{uids.IMPLEMENTATION_VERSION_NAME}; rejection notes state those of section 2. "
                "A source series of classic images that holds several whole volumes "
                "(orientations, echoes) gives a derived series of each form and companion for "
                "each of them; its Series Description names the volume."
            ),
        ),
        Table(
            head=("attribute",),
            rows=copied,
            note=(
                f"Copied into a derived image from its source, besides the groups {groups}; all "
                "other attributes describe the source's pixels and are made anew or left out. "
                "Everything needed to explain the result stands in a private block of group 0075, "
                "creator DICOM-NODE AI-SR."
            ),
        ),
    ]
