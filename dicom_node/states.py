"""The states of a series and the only ways between them."""

from enum import StrEnum

from dicom_node.errors import IllegalTransition


class JobState(StrEnum):
    """What has become of one generation of one received series (design section 3)."""

    RECEIVING = "RECEIVING"  # instances arrive; idle time has not passed
    HELD = "HELD"  # a person must look: incomplete, doubtful result, or the gate refused
    SKIPPED = "SKIPPED"  # not ours; the reason says why
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DERIVED = "DERIVED"  # result published, or originals to be forwarded: deliveries pending
    DELIVERED = "DELIVERED"
    DEAD = "DEAD"  # failed for good; the reason says why
    CANCELLED = "CANCELLED"  # by a person, or withdrawn
    SUPERSEDED = "SUPERSEDED"  # a late slice made a new generation


class HeldBy(StrEnum):
    """Who held a job; decides what `release` may do with it."""

    COMPLETENESS = "completeness"
    RULE = "rule"
    QUALITY = "quality"
    GATE = "gate"


S = JobState
TRANSITIONS: dict[tuple[JobState, str], JobState] = {
    (S.RECEIVING, "enqueue"): S.QUEUED,  # complete and a rule says enhance
    (S.RECEIVING, "forward"): S.DERIVED,  # a rule says forward: the originals are sent on
    (S.RECEIVING, "hold"): S.HELD,  # a hole, or a rule says hold
    (S.RECEIVING, "skip"): S.SKIPPED,
    (S.RECEIVING, "cancel"): S.CANCELLED,
    (S.HELD, "receive"): S.RECEIVING,  # a late slice reopens the series
    (S.SKIPPED, "receive"): S.RECEIVING,
    (S.QUEUED, "receive"): S.RECEIVING,
    (S.QUEUED, "claim"): S.RUNNING,
    (S.QUEUED, "cancel"): S.CANCELLED,
    (S.RUNNING, "derive"): S.DERIVED,
    (S.RUNNING, "hold"): S.HELD,  # quality or gate asks for a person
    (S.RUNNING, "refuse"): S.DEAD,  # the input is at fault: trying again cannot help
    (S.RUNNING, "expire"): S.QUEUED,  # the worker died: its lease ran out
    (S.RUNNING, "fail"): S.DEAD,  # attempts used up
    (S.RUNNING, "retry"): S.QUEUED,  # failed once, may succeed later
    (S.RUNNING, "cancel"): S.CANCELLED,
    (S.RUNNING, "supersede"): S.SUPERSEDED,
    (S.HELD, "release"): S.QUEUED,  # a person accepts an incomplete series
    (S.HELD, "derive"): S.DERIVED,  # a person accepts a doubtful result
    (S.HELD, "cancel"): S.CANCELLED,
    (S.HELD, "supersede"): S.SUPERSEDED,
    (S.DERIVED, "deliver"): S.DELIVERED,
    (S.DERIVED, "fail"): S.DEAD,  # a destination refused for good
    (S.DERIVED, "cancel"): S.CANCELLED,
    (S.DERIVED, "supersede"): S.SUPERSEDED,
    (S.DELIVERED, "supersede"): S.SUPERSEDED,
    (S.DEAD, "requeue"): S.QUEUED,
    (S.DEAD, "resend"): S.DERIVED,  # the result exists: only the deliveries are tried again
    (S.DEAD, "receive"): S.RECEIVING,
    (S.DEAD, "supersede"): S.SUPERSEDED,
    (S.SKIPPED, "requeue"): S.QUEUED,  # a person overrules the rules
    (S.CANCELLED, "requeue"): S.QUEUED,
    (S.CANCELLED, "supersede"): S.SUPERSEDED,  # it had a published result: another generation
    # Withdrawn: its weights were recalled, its source was rejected or corrected.
    **{(state, "withdraw"): S.CANCELLED for state in S if state != S.SUPERSEDED},
    (S.SUPERSEDED, "withdraw"): S.SUPERSEDED,  # an archive may still have what it sent
    # A rejection note (IOCM) is a job of its own: it has nothing to compute.
    (S.RECEIVING, "reject"): S.DERIVED,
    (S.DELIVERED, "readdress"): S.DERIVED,  # one more destination turns out to need the note
}
FINAL = frozenset({S.SKIPPED, S.DELIVERED, S.DEAD, S.CANCELLED, S.SUPERSEDED})


def next_state(state: JobState, event: str) -> JobState:
    """Return the state that follows `state` on `event`.

    Raises
    ------
    IllegalTransition
        If TRANSITIONS has no row for the pair.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event!r} is not allowed in state {state.value}") from None
