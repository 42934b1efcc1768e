"""What a fault of a delivery means: sent, worth another try, or final; and when to try again."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Verdict(StrEnum):
    """What the sender does about an answer, or about the lack of one."""

    SENT = "sent"
    SENT_WITH_WARNING = "sent-with-warning"  # the peer keeps the instance, but said something
    TRANSIENT = "transient"
    PERMANENT = "permanent"


class Fault(StrEnum):
    """Why there is no status of the instance at all."""

    UNREACHABLE = "unreachable"
    REJECTED_TRANSIENT = "rejected-transient"
    REJECTED_PERMANENT = "rejected-permanent"
    ABORTED = "aborted"
    TIMED_OUT = "timed-out"
    NO_CONTEXT = "no-context"
    NO_FILE = "no-file"
    UNREADABLE = "unreadable"
    ALTERED = "altered"
    # Of DICOMweb servers:
    MOVED = "moved"
    BAD_REQUEST = "bad-request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NO_SERVICE = "no-service"
    NOT_ACCEPTABLE = "not-acceptable"
    CONFLICT = "conflict"
    TOO_LARGE = "too-large"
    BUSY = "busy"
    SERVER_ERROR = "server-error"
    NO_SECRET = "no-secret"
    UNCONFIRMED = "unconfirmed"
    OLDER_VERSION = "older-version"  # of an original that was corrected since
    UNDER_WAY = "under-way"  # an attempt has begun, and nothing was heard of the instance yet


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """One row of FAULTS: the verdict and the words for an administrator."""

    verdict: Verdict
    text: str


def _row(verdict: Verdict, text: str) -> Meaning:
    return Meaning(verdict=verdict, text=text)


_SENT, _WARNED = Verdict.SENT, Verdict.SENT_WITH_WARNING
_AGAIN, _NEVER = Verdict.TRANSIENT, Verdict.PERMANENT

# A status range (first, last) or a Fault -> its meaning; for C-STORE and the N-ACTION that asks
# for storage commitment alike. Source: PS3.4 B.2.3, PS3.4 J.3.2, PS3.7 annex C.
FAULTS: dict[tuple[int, int] | Fault, Meaning] = {
    (0x0000, 0x0000): _row(_SENT, "stored"),
    (0x0001, 0x0001): _row(_WARNED, "stored, something optional is not supported"),
    (0x0105, 0x0106): _row(_NEVER, "no such attribute, or an invalid value"),
    (0x0107, 0x0107): _row(_WARNED, "stored, an attribute was ignored"),
    (0x0110, 0x0110): _row(_AGAIN, "processing failure"),
    # Our UIDs are made from the content: who has the UID has what we sent and lost the answer of.
    (0x0111, 0x0111): _row(_WARNED, "the peer has this SOP instance already"),
    (0x0112, 0x0112): _row(_NEVER, "no such SOP instance"),
    (0x0114, 0x0115): _row(_NEVER, "an argument is refused"),
    (0x0116, 0x0116): _row(_WARNED, "stored, a value is out of range"),
    (0x0117, 0x0117): _row(_NEVER, "invalid SOP instance"),
    (0x0118, 0x0118): _row(_NEVER, "no such SOP class"),
    (0x0119, 0x0119): _row(_NEVER, "the SOP instance is of another class"),
    (0x0120, 0x0121): _row(_NEVER, "an attribute or its value is missing"),
    (0x0122, 0x0122): _row(_NEVER, "SOP class not supported"),
    (0x0123, 0x0123): _row(_NEVER, "no such action"),
    (0x0124, 0x0124): _row(_NEVER, "not authorised"),
    (0x0210, 0x0210): _row(_AGAIN, "duplicate invocation"),
    (0x0211, 0x0211): _row(_NEVER, "unrecognised operation"),
    (0x0212, 0x0212): _row(_NEVER, "mistyped argument"),
    (0x0213, 0x0213): _row(_AGAIN, "resource limitation"),
    (0xA700, 0xA7FF): _row(_AGAIN, "out of resources"),
    (0xA900, 0xA9FF): _row(_NEVER, "data set does not match SOP class"),
    (0xB000, 0xBFFF): _row(_WARNED, "stored with a warning"),  # B000, B006 and B007 among them
    (0xC000, 0xCFFF): _row(_NEVER, "cannot understand"),
    Fault.UNREACHABLE: _row(_AGAIN, "no connection"),
    Fault.REJECTED_TRANSIENT: _row(_AGAIN, "association rejected for now"),
    Fault.REJECTED_PERMANENT: _row(_NEVER, "association rejected"),
    Fault.ABORTED: _row(_AGAIN, "association aborted"),
    Fault.TIMED_OUT: _row(_AGAIN, "no answer in time"),
    Fault.NO_CONTEXT: _row(_NEVER, "SOP class or transfer syntax not accepted"),
    Fault.NO_FILE: _row(_NEVER, "the file to send is missing or no DICOM instance"),
    # Too many open files, a disk or file server that is away: the next attempt may read it.
    Fault.UNREADABLE: _row(_AGAIN, "the file to send cannot be read now"),
    Fault.ALTERED: _row(_NEVER, "the file to send is not the one that was published"),
    Fault.MOVED: _row(_NEVER, "the server says that it has moved; its url must be changed here"),
    Fault.BAD_REQUEST: _row(_NEVER, "the server refuses the request"),
    # Tokens expire and are renewed: the secret is read again at every attempt.
    Fault.UNAUTHENTICATED: _row(_AGAIN, "the server does not take our credentials"),
    Fault.FORBIDDEN: _row(_NEVER, "the server does not allow it"),
    Fault.NO_SERVICE: _row(_NEVER, "there is no such service at this url"),
    Fault.NOT_ACCEPTABLE: _row(_NEVER, "the server does not take this media type"),
    Fault.CONFLICT: _row(_NEVER, "the server refuses all instances and does not say why"),
    Fault.TOO_LARGE: _row(_NEVER, "the instance is too large for the server"),
    Fault.BUSY: _row(_AGAIN, "the server is busy"),
    Fault.SERVER_ERROR: _row(_AGAIN, "the server has failed"),
    Fault.NO_SECRET: _row(_AGAIN, "our credentials for the server cannot be read"),
    Fault.UNCONFIRMED: _row(_AGAIN, "the server's answer does not name the instance"),
    Fault.OLDER_VERSION: _row(
        _NEVER, "the peer may have the image as it was before its correction: look there"
    ),
    Fault.UNDER_WAY: _row(_AGAIN, "the attempt ended before anything was heard of it"),
}

# A status range (first, last) of HTTP that is no answer about single instances -> the fault; the
# first that fits. Source: RFC 9110 15, PS3.18 10.5.3.
HTTP_FAULTS: dict[tuple[int, int], Fault] = {
    (300, 399): Fault.MOVED,
    (401, 401): Fault.UNAUTHENTICATED,
    (403, 403): Fault.FORBIDDEN,
    (404, 405): Fault.NO_SERVICE,
    (406, 406): Fault.NOT_ACCEPTABLE,
    (407, 407): Fault.UNAUTHENTICATED,
    (408, 408): Fault.BUSY,
    (409, 409): Fault.CONFLICT,
    (410, 410): Fault.NO_SERVICE,
    (413, 413): Fault.TOO_LARGE,
    (415, 415): Fault.NOT_ACCEPTABLE,
    (425, 425): Fault.BUSY,
    (429, 429): Fault.BUSY,
    (400, 499): Fault.BAD_REQUEST,
    (501, 501): Fault.NO_SERVICE,
    (503, 503): Fault.BUSY,
    (500, 599): Fault.SERVER_ERROR,
}


class Cure(StrEnum):
    """What the sender does about an instance that a destination did not commit."""

    RESEND = "resend"  # send it again, then ask again
    ASK = "ask"  # it may be stored: only ask again
    NONE = "none"


# Failure Reason (0008,1197) of a storage commitment -> (cure, words). Source: PS3.3 C.14.1.1.
COMMITMENT_FAILURES: dict[int, tuple[Cure, str]] = {
    0x0110: (Cure.RESEND, "processing failure"),
    0x0112: (Cure.RESEND, "no such object instance"),
    0x0119: (Cure.NONE, "class or instance conflict"),
    0x0122: (Cure.NONE, "SOP class not supported"),
    0x0131: (Cure.ASK, "duplicate transaction UID"),
    0x0213: (Cure.RESEND, "resource limitation"),
}
# Whatever a vendor made up: the number of attempts is bounded, so trying again cannot harm.
UNKNOWN = _row(_AGAIN, "a status that DICOM does not define")


def classify(fault: int | Fault) -> Meaning:
    """Return what a C-STORE status, or the lack of one, means."""
    if isinstance(fault, Fault):
        return FAULTS[fault]
    for key, meaning in FAULTS.items():
        if isinstance(key, tuple) and key[0] <= fault <= key[1]:
            return meaning
    return UNKNOWN


def http_fault(status: int) -> Fault:
    """Return what an HTTP status means that is not the expected one."""
    for (first, last), fault in HTTP_FAULTS.items():
        if first <= status <= last:
            return fault
    return Fault.UNCONFIRMED


def statuses(verdict: Verdict) -> list[tuple[int, int]]:
    """Return the ranges (first, last) of the statuses that mean `verdict`."""
    return [key for key, row in FAULTS.items() if isinstance(key, tuple) and row.verdict is verdict]


def describe(fault: int | Fault) -> str:
    """Return the fault in words: ``status 0xA700 (out of resources)``."""
    text = classify(fault).text
    return text if isinstance(fault, Fault) else f"status 0x{fault:04X} ({text})"


def cure(failure_reason: int) -> Cure:
    """Return what helps against a Failure Reason; an unknown one is worth a resend."""
    return COMMITMENT_FAILURES.get(failure_reason, (Cure.RESEND, ""))[0]


def describe_failure(failure_reason: int) -> str:
    """Return a Failure Reason in words: ``0x0112 (no such object instance)``."""
    text = COMMITMENT_FAILURES.get(failure_reason, (Cure.RESEND, "not defined by DICOM"))[1]
    return f"0x{failure_reason:04X} ({text})"


def backoff_s(
    attempt: int, rng: Random, *, base_s: float = 5.0, cap_s: float = 3600.0, least: float = 0.0
) -> float:
    """Return how long to wait before try ``attempt + 1``: exponential, with jitter.

    Parameters
    ----------
    attempt
        Number of tries so far, from 1.
    rng
        Source of the jitter, which keeps many deliveries from knocking at once.
    least
        Share of the longest wait that is waited in any case; 0: full jitter.
    """
    if attempt < 1:
        raise ValueError(f"attempt counts from 1, not {attempt}")
    ceiling_s = min(cap_s, base_s * 2.0 ** min(attempt - 1, 32))
    return rng.uniform(least * ceiling_s, ceiling_s)
