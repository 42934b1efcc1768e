"""The store: received series, the queue, results and deliveries, in one SQL database.

The store is the queue: there are no marker files and no queue in memory.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dicom_node.store import schema
from dicom_node.store.arrivals import Recorded
from dicom_node.store.audit import AuditRow, AuditStore
from dicom_node.store.chain import Proof
from dicom_node.store.commitments import CommitmentStore, Outstanding, Report, Reported, Resends
from dicom_node.store.database import Database
from dicom_node.store.debts import Debt, DebtStore
from dicom_node.store.deliveries import DeliveryInstance, DeliveryStore, DeliveryTask
from dicom_node.store.hints import Announcement, HintStore
from dicom_node.store.instances import InstanceRow, NewInstance
from dicom_node.store.jobs import JobRow, JobStore
from dicom_node.store.lots import Limits, Lot
from dicom_node.store.occupancy import Occupancy
from dicom_node.store.queue import ClaimedJob
from dicom_node.store.removals import Gone, Removal, RemovalStore
from dicom_node.store.results import DerivedInstance, DerivedSeries
from dicom_node.store.series import Ledger, SeriesStore
from dicom_node.store.transactions import Reference
from dicom_node.store.waits import WaitStore
from dicom_node.store.withdrawals import Grounds, Owed, WithdrawalStore, Withdrawn
from dicom_node.store.workitems import WorkitemRow, WorkitemStore

__all__ = [
    "Announcement",
    "AuditRow",
    "ClaimedJob",
    "Debt",
    "DeliveryInstance",
    "DeliveryTask",
    "DerivedInstance",
    "DerivedSeries",
    "Gone",
    "Grounds",
    "InstanceRow",
    "JobRow",
    "Ledger",
    "Limits",
    "Lot",
    "NewInstance",
    "Outstanding",
    "Owed",
    "Proof",
    "Recorded",
    "Reference",
    "Removal",
    "Report",
    "Reported",
    "Resends",
    "Store",
    "Withdrawn",
    "WorkitemRow",
    "open_store",
]


class SwitchStore:
    """Named values that people change while the service runs."""

    def __init__(self, database: Database) -> None:
        """Read and write `database`."""
        self._database = database

    def get(self, name: str, default: Any) -> Any:
        """Return the value of the switch, `default` while nobody has set it."""
        query = sa.select(schema.switch.c.value).where(schema.switch.c.name == name)
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return default if row is None else row.value

    def set(self, name: str, value: Any, now: datetime) -> None:
        """Set the switch, with an audit row."""
        table = schema.switch
        values = {"value": value, "changed_at": now}
        with self._database.transaction() as work:
            changed = work.execute(sa.update(table).where(table.c.name == name).values(**values))
            if changed.rowcount == 0:
                work.execute(sa.insert(table).values(name=name, **values))
            work.record("switch.set", now, switch=name, value=value)


class Store:
    """All parts of the store; safe to use from many threads, the database from many processes."""

    def __init__(self, database: Database) -> None:
        """Stand on `database`."""
        self.database = database
        self.series = SeriesStore(database)
        self.jobs = JobStore(database)
        self.deliveries = DeliveryStore(database)
        self.commitments = CommitmentStore(database)
        self.debts = DebtStore(database)
        self.removals = RemovalStore(database)
        self.withdrawals = WithdrawalStore(database)
        self.audit = AuditStore(database)
        self.switches = SwitchStore(database)
        self.waits = WaitStore(database)
        self.occupancy = Occupancy(database)
        self.hints = HintStore(database)
        self.workitems = WorkitemStore(database)

    def ledger(self) -> Ledger:
        """Return what became of every acknowledged instance."""
        return self.series.ledger()

    def close(self) -> None:
        """Close every connection."""
        self.database.close()


def open_store(url: str) -> Store:
    """Return the store at `url`, its schema brought to the newest revision.

    Raises
    ------
    SettingsError
        If `url` cannot be used, or a newer version wrote the database.
    StoreUnavailable
        If the database does not answer.
    """
    database = Database(url)
    database.migrate()
    database.warn_of_risks()
    return Store(database)
