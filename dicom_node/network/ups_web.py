"""A manager's worklist over DICOMweb: UPS-RS as a client (PS3.18 11)."""

import json
from collections.abc import Mapping
from typing import Any

from dicom_node.network.dicomweb import query, text
from dicom_node.network.http import JSON, Reply, WebFault, connected, data_set_in
from dicom_node.network.ups import SCHEDULED, STATE, TRANSACTION, Lost, Manager, value
from dicom_node.retry import Fault, http_fault

GONE = (Fault.CONFLICT, Fault.NO_SERVICE, Fault.BAD_REQUEST, Fault.FORBIDDEN)


class WebManager(Manager):
    """A peer with protocol = "dicomweb" that has a worklist."""

    def _search(self) -> list[dict[str, Any]]:
        keys = {"ProcedureStepState": SCHEDULED}
        keys |= {"ScheduledWorkitemCodeSequence.CodeValue": self.peer.worklist_code}
        with connected(self.peer, self.timeouts) as client:
            return query(client, f"{self.peer.url}/workitems", keys | {"includefield": "all"})

    def _state_of(self, uid: str) -> str:
        with connected(self.peer, self.timeouts) as client:
            url = f"{self.peer.url}/workitems/{uid}"
            reply = client.ask("GET", url, headers={"Accept": JSON})
        refuse(reply)
        return text(data_set_in(reply.content), STATE)

    def _change(self, uid: str, state: str, transaction_uid: str) -> None:
        said = {STATE: value("CS", state), TRANSACTION: value("UI", transaction_uid)}
        self._put("PUT", f"{self.peer.url}/workitems/{uid}/state", said)

    def _update(self, uid: str, transaction_uid: str, said: Mapping[str, Any]) -> None:
        said = {**said, TRANSACTION: value("UI", transaction_uid)}
        url = f"{self.peer.url}/workitems/{uid}"
        self._put("POST", url, said, {"transaction": transaction_uid})

    def _put(
        self,
        method: str,
        url: str,
        said: Mapping[str, Any],
        params: Mapping[str, str] | None = None,
    ) -> None:
        headers = {"Content-Type": JSON, "Accept": JSON}
        body = json.dumps([said])
        with connected(self.peer, self.timeouts) as client:
            reply = client.ask(method, url, content=body, headers=headers, params=params)
        refuse(reply)


def refuse(reply: Reply) -> None:
    """Raise what a refusal means; a success is nothing."""
    if 200 <= reply.status_code < 300:
        return
    fault, words = http_fault(reply.status_code), f"HTTP {reply.status_code}"
    raise (Lost if fault in GONE else WebFault)(fault, words)
