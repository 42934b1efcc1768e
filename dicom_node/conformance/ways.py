"""Tables of the Conformance Statement about other ways in and out: retrieval, hints, the web."""

from dicom_node.conformance.services import code_range
from dicom_node.conformance.tables import YES_NO, Table
from dicom_node.network import hints, keeping, retrieve
from dicom_node.network.http import JSON
from dicom_node.retry import FAULTS, HTTP_FAULTS
from dicom_node.settings import Settings

HINTS = {
    hints.SUCCESS: "on record",
    0x0111: "a procedure step of this UID is known",
    0x0112: "the procedure step is not known from this peer",
    0x0110: "the procedure step has ended",
    hints.INVALID_VALUE: "the status is none of the standard's, or the step does not begin with it",
    0x0115: "a UID is missing or none, or the data set is damaged",
    hints.NO_SUCH_CLASS: "an N-SET of something else than a procedure step",
    hints.NOT_AUTHORISED: "the peer is configured as no source",
    hints.RESOURCES: "the database does not answer, or more instances are named than a study has",
}


def retrieval(settings: Settings) -> list[Table]:
    """Return what is asked of peers by `dicom-node pull`, and what their answers mean."""
    keys = [
        ("STUDY", "AccessionNumber, StudyInstanceUID", "Accession Number"),
        ("SERIES", "StudyInstanceUID, SeriesInstanceUID, Modality", "Series Instance UID"),
        ("IMAGE", "SOPInstanceUID; SOPClassUID for C-GET", "Study and Series Instance UID"),
    ]
    statuses = [
        (code_range(*codes), words.format(title=settings.node.ae_title))
        for codes, words in retrieve.WORDS.items()
    ]
    return [
        Table(
            head=("level", "keys asked for", "matched by"),
            rows=keys,
            note=(
                "C-FIND in the Study Root model. A series whose study nobody names is asked for "
                "relationally first. No wildcard is ever sent."
            ),
        ),
        Table(
            head=("status", "meaning"),
            rows=statuses,
            note=(
                "C-MOVE to our own AE title, or C-GET: at SERIES level, or at IMAGE level where "
                "some instances are here already or the rate is limited. A C-GET proposes "
                f"{retrieve.MOST_CONTEXTS} storage contexts at most, those that fit the series "
                "first. Final statuses, besides success and B000:"
            ),
        ),
    ]


def hints_taken(settings: Settings) -> list[Table]:
    """Return how N-CREATE and N-SET are answered."""
    note = (
        "Of an MPPS that is COMPLETED and of a notification the instances of each series are kept, "
        "and nothing else. When what is named is what is here, a series does not wait for "
        f"{settings.assembly.idle_s:g} s (assembly.idle_s); where a named instance is missing "
        "after that time, it is held."
    )
    rows = [(f"{code:04X}", words) for code, words in HINTS.items()]
    return [Table(head=("status", "when"), rows=rows, note=note)]


def web_services(settings: Settings) -> list[Table]:
    """Return the web services on both sides, and what their answers mean."""
    rows = [
        ("STOW-RS", "user agent", "POST {url}/studies", "application/dicom"),
        ("QIDO-RS", "user agent", "GET {url}/studies, /series, /instances", JSON),
        ("WADO-RS", "user agent", "GET {url}/studies/UID/series/UID", "application/dicom"),
        ("UPS-RS", "user agent", "GET, POST, PUT {url}/workitems", JSON),
        ("STOW-RS", "origin server", "POST /dicom-web/studies[/UID]", "application/dicom"),
    ]
    stow = YES_NO[settings.web.stow]
    refused = [
        (f"{keeping.NO_SUCH_CLASS:04X}", "the SOP class is not of section 3"),
        (f"{keeping.NO_SUCH_SYNTAX:04X}", "the transfer syntax is not of section 4"),
    ]
    return [
        Table(
            head=("service", "role", "resource", "content"),
            rows=rows,
            note=(
                "As user agent: of peers with protocol = dicomweb, at their url, over TLS where it "
                f"begins with https. As origin server (web.stow): {stow}; with a token of the role "
                f"sender, {settings.web.stow_bytes} bytes in a request at most."
            ),
        ),
        Table(
            head=("failure reason", "meaning"),
            rows=refused,
            note="Besides the statuses of section 8, an instance that is stored here may get:",
        ),
        Table(
            head=("HTTP status", "meaning", "the delivery is"),
            rows=[
                (http_range(*codes), FAULTS[fault].text, FAULTS[fault].verdict.value)
                for codes, fault in HTTP_FAULTS.items()
            ],
            note=(
                "Of a server's answer to STOW-RS the status of each instance counts, as in section "
                "9. Without any, the first row that fits:"
            ),
        ),
    ]


def http_range(first: int, last: int) -> str:
    """Return one HTTP status, or two ends of many."""
    return str(first) if first == last else f"{first} to {last}"
