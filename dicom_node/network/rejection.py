"""Rejections that pynetdicom overlooks."""

from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE

REJECTED = (0x01, 0x02)  # permanent, transient (PS3.8 table 9-21)


def notice_rejection(association: Association) -> None:
    """Make an association that was rejected say so, although pynetdicom overlooked it.

    The requestor's thread asks whether the connection is still open before it reads the answer. A
    quick peer has rejected by then, the reactor has closed, and pynetdicom 3.0.4 takes that for a
    failure to connect: the answer stays in the queue, the association ends as aborted. A permanent
    refusal would be tried again for days.
    """
    waiting = association.dul.to_user_queue
    with waiting.mutex:
        answers = [each for each in waiting.queue if isinstance(each, A_ASSOCIATE)]
    for answer in answers:
        if answer.result in REJECTED:
            association.acceptor.primitive = answer
            association.is_rejected, association.is_aborted = True, False
