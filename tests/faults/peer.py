"""An archive of ours that misbehaves as it is told, and remembers exactly what it did."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from pydicom import Dataset
from pynetdicom.events import Event

from tests.dicom_node.committers import Archive
from tests.faults.accounts import Holdings, digest

SUCCESS = 0x0000
# What an archive may do with one instance that it keeps not: answer a status, or worse.
LIE, ABORT, HANG = "lie", "abort", "hang"
Act = int | str


@dataclass(kw_only=True)
class Script:
    """What happens to the instances of one series: `acts` by their order of arrival.

    An instance meets its acts one after the other, each time it is sent; then it is kept.
    """

    name: str
    acts: Mapping[int, tuple[Act, ...]] = field(default_factory=dict)
    others: tuple[Act, ...] = ()  # of every instance that is not named
    for_ever: bool = False  # the last act never ends, until `heal`


class Peer(Archive):
    """Plays a script for each series that comes, the scripts in turn; commits truthfully."""

    ae_title = "PACS"

    def __init__(self, node_port: int, scripts: tuple[Script, ...]) -> None:
        super().__init__("new")
        self.node_port = node_port
        self._scripts = scripts
        self._played: dict[str, Script] = {}
        self._order: dict[str, list[str]] = {}
        self._left: dict[str, list[Act]] = {}
        self._kept: Holdings = {}
        self.acts: Counter[str] = Counter()  # what was done, by name
        self.stored: Counter[str] = Counter()  # SOP instance UID -> how often it was taken
        self.healed = False
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def start(self) -> "Peer":
        """Listen."""
        self._stack.enter_context(self.listening())
        return self

    def stop(self) -> None:
        """Stop listening."""
        self._stack.close()

    def holdings(self) -> Holdings:
        """Return what is kept."""
        return {uid: dict(instances) for uid, instances in self._kept.items()}

    def script_of(self, series_uid: str) -> Script | None:
        """Return the script that a series met, None while nothing of it has come."""
        return self._played.get(series_uid)

    def store(self, event: Event) -> int:
        """Do to an instance what its script says."""
        dataset = event.dataset
        uid = str(dataset.SOPInstanceUID)
        with self._lock:
            act = self._next_act(str(dataset.SeriesInstanceUID), uid)
            self.acts[f"0x{act:04X}" if isinstance(act, int) else act] += 1
        if act == LIE:
            return SUCCESS
        if act == ABORT:
            event.assoc.abort()
            return SUCCESS  # nobody hears it
        if act == HANG:
            time.sleep(3.0)
            return 0x0110
        assert isinstance(act, int)
        if act == SUCCESS or 0xB000 <= act <= 0xBFFF:
            self._keep(dataset, uid)
        return act

    def _next_act(self, series_uid: str, uid: str) -> Act:
        script = self._played.get(series_uid)
        if script is None:
            script = self._scripts[len(self._played) % len(self._scripts)]
            self._played[series_uid] = script
        order = self._order.setdefault(series_uid, [])
        if uid not in self._left:
            order.append(uid)
            self._left[uid] = list(script.acts.get(len(order) - 1, script.others))
        left = self._left[uid]
        if not left or self.healed and script.for_ever:
            return SUCCESS
        return left[0] if script.for_ever and len(left) == 1 else left.pop(0)

    def _keep(self, dataset: Dataset, uid: str) -> None:
        content = digest(dataset)
        with self._lock:
            self.stored[uid] += 1
            self.kept.add(uid)
            self._kept.setdefault(str(dataset.SeriesInstanceUID), {})[uid] = content

    def twice(self) -> list[str]:
        """Return the instances that were taken more than once."""
        return [uid for uid, count in self.stored.items() if count > 1]
