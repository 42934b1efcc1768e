"""Series after series to an archive that plays its scripts, then to the same one mended."""

from pathlib import Path
from typing import Self

from dicom_node.settings import load_settings
from dicom_node.store import open_store
from tests.faults.accounts import Account, settle_account
from tests.faults.ledger import Row, say
from tests.faults.peer import Peer, Script
from tests.faults.stand import Stand
from tests.integration.partners import free_port

AT_ONCE = 4


class Misbehaviour:
    """A stand whose archive is a `Peer`; a context manager."""

    def __init__(
        self, folder: Path, scripts: tuple[Script, ...], seed: int, *, commitment: bool
    ) -> None:
        port = free_port()
        self.peer = Peer(port, scripts).start()
        self.stand = Stand(
            folder,
            pacs=self.peer,
            port=port,
            seed=seed,
            asks=commitment,
            sending={"timeout_s": 1.5},
            commitment={"timeout_s": 2.0},
        )

    def __enter__(self) -> Self:
        self.stand.node.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stand.node.stop()
        finally:
            self.peer.stop()

    def row(self, name: str, series: int, hopeless: str) -> Row:
        """Send so many series and return the row.

        Parameters
        ----------
        hopeless
            Words in the reason of a job whose script never ends.
        """
        for number in range(series):
            self.stand.send_all(self.stand.new())
            if number % AT_ONCE == AT_ONCE - 1:
                self.stand.settle(900.0)
                say(f"{number + 1} of {series} series")
        self.stand.settle(900.0)
        account = Account()
        dead = self._requeue_dead(account, hopeless)
        self.stand.settle(900.0, lambda state: state == "DELIVERED")
        account.add(settle_account(self.stand))
        for uid in self.peer.twice():
            account.problems.append(f"instance {uid} was taken more than once")
        details = {"answers of the archive": dict(self.peer.acts), "given up, then requeued": dead}
        return Row(name=name, unit="series", count=series, account=account, details=details)

    def _requeue_dead(self, account: Account, hopeless: str) -> int:
        """Mend the archive and requeue what was given up; return how many that were."""
        self.peer.healed = True
        store = open_store(load_settings(self.stand.node.config, {}).database_url)
        try:
            rows = store.series.listing()
        finally:
            store.close()
        dead = [row for row in rows if row["state"] == "DEAD"]
        for row in rows:
            script = self.peer.script_of(row["derived_series_uid"] or "")
            wanted = "DEAD" if script and script.for_ever else "DELIVERED"
            if row["state"] != wanted or (wanted == "DEAD" and hopeless not in row["reason"]):
                account.problems.append(
                    f"{script.name if script else 'unsent'}: {row['state']}, {row['reason']}"
                )
        for row in dead:
            self.stand.node.command("requeue", row["series_uid"])
        return len(dead)
