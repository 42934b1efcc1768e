"""Asking a DICOMweb server what it has, and fetching it: QIDO-RS, WADO-RS (PS3.18 10.6, 10.4)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dicom_node.multipart import DICOM, TYPE, MultipartError, Splitter, media_type
from dicom_node.network.connecting import Timeouts
from dicom_node.network.found import FoundSeries
from dicom_node.network.http import JSON, Client, Reply, WebFault, connected, document_in
from dicom_node.pixel_files import is_uid
from dicom_node.retry import Fault, http_fault
from dicom_node.settings import PeerSettings

NOTHING_FOUND = (204, 404)
PAGE = 500  # answers of one query; servers give fewer if they like
MOST_ANSWERS = 100_000  # to one query
PIECE_BYTES = 2**18
ACCESSION, MODALITY = "00080050", "00080060"
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
DEFAULT_SYNTAX = f'{TYPE}; type="{DICOM}"'  # Explicit VR Little Endian
ANY_SYNTAX = f"{DEFAULT_SYNTAX}; transfer-syntax=*"


def echo(peer: PeerSettings, timeouts: Timeouts) -> None:
    """Return when the server has answered a query; raise WebFault if it has not."""
    with connected(peer, timeouts) as client:
        url, headers = f"{peer.url}/studies", {"Accept": JSON}
        reply = client.ask("GET", url, params={"limit": "1"}, headers=headers)
        if reply.status_code != 204:
            documents(reply)


def query(client: Client, url: str, keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return every answer to a query, page by page.

    Raises
    ------
    WebFault
        If the server does not answer with a list.
    """
    answers: dict[tuple[str, ...], dict[str, Any]] = {}
    while True:  # a server may give fewer than asked for, and ignore the offset
        page = {"limit": str(PAGE), "offset": str(len(answers))}
        reply = client.ask("GET", url, params={**keys, **page}, headers={"Accept": JSON})
        found = [] if reply.status_code in NOTHING_FOUND else documents(reply)
        before = len(answers)
        answers |= {
            tuple(text(one, tag) for tag in (STUDY, SERIES, INSTANCE)): one for one in found
        }
        if len(answers) == before:
            return list(answers.values())
        if len(answers) > MOST_ANSWERS:
            raise WebFault(Fault.UNCONFIRMED, f"more than {MOST_ANSWERS} answers came")


def documents(reply: Reply) -> list[dict[str, Any]]:
    """Return the data sets of an answer in JSON; raise WebFault if it is none."""
    if reply.status_code != 200:
        raise WebFault(http_fault(reply.status_code), f"HTTP {reply.status_code}")
    found = document_in(reply.content)
    if isinstance(found, list) and all(isinstance(one, dict) for one in found):
        return found
    raise WebFault(Fault.UNCONFIRMED, "the answer is no list in DICOM JSON")


def text(answer: Mapping[str, Any], tag: str) -> str:
    """Return the first value of an element; empty where it is absent."""
    values = answer.get(tag, {}).get("Value") if isinstance(answer.get(tag), dict) else None
    return str(values[0]).strip() if isinstance(values, list) and values else ""


def uid_in(answer: Mapping[str, Any], tag: str) -> str:
    """Return the UID that an element holds; empty where it holds none.

    What a server says is a part of the next URL: it must not lead elsewhere.
    """
    found = text(answer, tag)
    return found if is_uid(found) else ""


def instances_at(
    peer: PeerSettings,
    study_uid: str,
    series_uid: str,
    timeouts: Timeouts,
    *,
    wanted: Sequence[str] = (),
) -> set[str]:
    """Return the SOP instance UIDs that the server has of a series; raise WebFault.

    Parameters
    ----------
    wanted
        Looked for one by one where the series does not show them: an archive that has merged two
        studies keeps the instances under another one.
    """
    with connected(peer, timeouts) as client:
        found = set(instances(client, peer, study_uid, series_uid))
        for uid in wanted:
            if uid not in found and not is_anywhere(client, peer, uid):
                break  # then it is not merged: nobody is asked hundreds of times
            found.add(uid)
    return found


def is_anywhere(client: Client, peer: PeerSettings, sop_uid: str) -> bool:
    """Return whether the server has an instance in any study; False where it cannot be asked so."""
    try:
        answers = query(client, f"{peer.url}/instances", {"SOPInstanceUID": sop_uid})
    except WebFault:
        return False
    return any(text(one, INSTANCE) == sop_uid for one in answers)


def instances(client: Client, peer: PeerSettings, study_uid: str, series_uid: str) -> list[str]:
    """Return the SOP instance UIDs of a series."""
    url = f"{series_url(peer, study_uid, series_uid)}/instances"
    found = [uid_in(one, INSTANCE) for one in query(client, url, {"includefield": INSTANCE})]
    return [uid for uid in dict.fromkeys(found) if uid]


def series_url(peer: PeerSettings, study_uid: str, series_uid: str) -> str:
    """Return where a series is; raise WebFault where it is not named by UIDs."""
    for uid in (study_uid, series_uid):
        if not is_uid(uid):
            raise WebFault(Fault.BAD_REQUEST, f"{uid[:80]!r} is no UID")
    return f"{peer.url}/studies/{study_uid}/series/{series_uid}"


def studies(client: Client, peer: PeerSettings, accession: str) -> list[str]:
    """Return the studies of an accession number; what does not say the number is not taken."""
    keys = {"AccessionNumber": accession, "includefield": ACCESSION}
    found = query(client, f"{peer.url}/studies", keys)
    named = [uid_in(one, STUDY) for one in found if text(one, ACCESSION) == accession]
    return [uid for uid in named if uid]


def series(
    client: Client, peer: PeerSettings, *, study_uid: str = "", series_uid: str = ""
) -> list[FoundSeries]:
    """Return the series of a study, one of them, or one whose study is not known."""
    url = f"{peer.url}/studies/{study_uid}/series" if study_uid else f"{peer.url}/series"
    keys = {"SeriesInstanceUID": series_uid} if series_uid else {}
    found = [
        FoundSeries(
            study_uid=uid_in(one, STUDY) or study_uid,
            series_uid=uid_in(one, SERIES),
            modality=text(one, MODALITY),
        )
        for one in query(client, url, keys | {"includefield": STUDY})
    ]
    return [
        one
        for one in found
        if one.study_uid and one.series_uid and series_uid in ("", one.series_uid)
    ]


def files_at(
    client: Client, url: str, most_bytes: int, *, accept: str = ANY_SYNTAX
) -> Iterator[bytes]:
    """Yield the DICOM files that the server has at `url`, each as it was stored where that works.

    Raises
    ------
    WebFault
        If they do not come to their end.
    """
    with client.streamed("GET", url, headers={"Accept": accept}) as (reply, pieces):
        if reply.status_code == 406 and accept == ANY_SYNTAX:  # older servers do not know the star
            yield from files_at(client, url, most_bytes, accept=DEFAULT_SYNTAX)
            return
        if reply.status_code not in (200, 206):
            raise WebFault(http_fault(reply.status_code), f"HTTP {reply.status_code}")
        kind = media_type(reply.headers.get("content-type", ""))
        try:
            splitter = Splitter(kind.parameters.get("boundary", ""), most_bytes)
            for piece in pieces:
                yield from (part.body for part in splitter.feed(piece))
            splitter.end()
        except MultipartError as error:
            raise WebFault(Fault.ABORTED, str(error), mid_way=True) from error
