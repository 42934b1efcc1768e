"""The rejection notes about what was withdrawn: who is owed one, and the job that sends it."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.states import JobState
from dicom_node.store import schema
from dicom_node.store.database import Work
from dicom_node.store.moves import locked_job, move
from dicom_node.store.results import DerivedInstance, resend


def has_something(connection: sa.Connection, job_id: int) -> list[str]:
    """Return the destinations that have something of a job's result, or may have."""
    delivery = schema.delivery
    query = sa.select(delivery.c.destination).where(delivery.c.job_id == job_id)
    query = query.where(may_have_something()).order_by(delivery.c.id)
    return list(connection.execute(query).scalars())


def untold() -> sa.Select[Any]:
    """Return the query of destinations that are owed a note, by job.

    A note that a person has cancelled is owed no more, nor one that cannot be made.
    """
    job, delivery = schema.job, schema.delivery
    note, told = schema.job.alias(), schema.delivery.alias()
    about = (note.c.series_id == job.c.series_id) & (note.c.generation == -job.c.generation)
    same = (told.c.destination == delivery.c.destination) | (note.c.state == JobState.CANCELLED)
    notes = sa.select(told.c.id).join(note, note.c.id == told.c.job_id).where(about, same)
    return (
        sa.select(job.c.id.label("job_id"), delivery.c.destination)
        .join(job, job.c.id == delivery.c.job_id)
        .where(job.c.withdrawn_at.is_not(None), ~job.c.unsendable, job.c.generation > 0)
        .where(may_have_something(), ~notes.exists())
        .order_by(job.c.id, delivery.c.id)
    )


def may_have_something() -> sa.ColumnElement[bool]:
    """Return the condition that a delivery's destination has something of it, or may have.

    After an attempt without an answer nobody knows: an instance may be there. A person who asks for
    it to be sent again sets the attempts to 0, but what an instance was answered stays, and so does
    the question what the destination keeps of all that it was sent.
    """
    delivery, part, asked = schema.delivery, schema.delivery_instance, schema.commitment
    answered = part.c.sent_at.is_not(None) | part.c.status.is_not(None) | part.c.fault.is_not(None)
    there = sa.select(part.c.delivery_id).where(
        part.c.delivery_id == delivery.c.id, answered | (delivery.c.attempts > 0)
    )
    questions = sa.select(asked.c.id).where(asked.c.delivery_id == delivery.c.id)
    return there.exists() | questions.exists()


def note_job(work: Work, old: sa.Row[Any]) -> int | None:
    """Return the job of the note about `old`, None while there is none."""
    job = schema.job
    same = (job.c.series_id == old.series_id) & (job.c.generation == -old.generation)
    found = work.execute(sa.select(job.c.id).where(same)).scalar_one_or_none()
    return None if found is None else int(found)


def put_file_back(work: Work, note_id: int, note: DerivedInstance) -> None:
    """Let the note's row speak of a file that is here, where retention has taken the old one."""
    table = schema.derived_instance
    gone = (table.c.job_id == note_id) & table.c.removal_id.is_not(None)
    file = {"path": str(note.path), "sha256": note.sha256, "bytes": note.bytes, "removal_id": None}
    work.execute(sa.update(table).where(gone).values(**file))


def reopen(work: Work, note_id: int, now: datetime) -> None:
    """Let a note that had come to its end be sent once more."""
    state = locked_job(work, note_id).state
    if state == JobState.DEAD:
        resend(work, note_id, now, wanted={})  # notes have no companions
    elif state == JobState.DELIVERED:
        move(work, note_id, "readdress", now)
