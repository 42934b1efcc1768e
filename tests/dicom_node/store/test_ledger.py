"""Promise 2: every acknowledged instance is accounted for, at every moment."""

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from dicom_node.errors import IllegalTransition, LeaseLost
from dicom_node.states import HeldBy
from dicom_node.store import DerivedInstance, DerivedSeries, NewInstance, open_store
from tests.rigs import due_at

LEASE = timedelta(seconds=60)
SERIES = st.sampled_from(["1.1", "1.2", "1.3"])
WORKERS = st.sampled_from(["a", "b"])


class Life(RuleBasedStateMachine):
    """Scanners, workers, destinations and people act in any order; no instance gets lost."""

    def __init__(self, databases):
        super().__init__()
        self.parts = ExitStack()
        self.store = open_store(self.parts.enter_context(databases.database()))
        self.parts.callback(self.store.close)
        self.now = datetime(2026, 1, 5, tzinfo=UTC)
        self.received: dict[str, int] = {}
        self.claims: list = []

    def teardown(self):
        self.parts.close()

    def newest(self, series_uid):
        jobs = self.store.jobs.of_series(series_uid)
        return jobs[-1] if jobs else None

    @rule(series_uid=SERIES)
    def receive(self, series_uid):
        number = self.received.get(series_uid, 0) + 1
        self.received[series_uid] = number
        self.store.series.record_instance(instance(series_uid, number), self.now)

    @rule(series_uid=SERIES)
    def receive_again(self, series_uid):
        if self.received.get(series_uid):
            again = self.store.series.record_instance(instance(series_uid, 1), self.now)
            assert again.outcome == "duplicate"

    @rule(
        series_uid=SERIES,
        event=st.sampled_from(["enqueue", "skip", "hold", "cancel"]),
        by=st.sampled_from([HeldBy.COMPLETENESS, HeldBy.RULE]),
    )
    def decide(self, series_uid, event, by):
        job, received = self.newest(series_uid), self.received.get(series_uid, 0)
        columns = {"held_by": by.value} if event == "hold" else {"destinations": ["pacs"]}
        if job is not None:
            self.store.jobs.decide(job.id, event, self.now, received, reason="So.", **columns)

    @rule(worker=WORKERS)
    def claim(self, worker):
        claimed = self.store.jobs.claim(worker, self.now, LEASE)
        if claimed is not None:
            self.claims.append((worker, claimed))

    @rule(end=st.sampled_from(["publish", "hold", "fail", "refuse"]))
    def work(self, end):
        if not self.claims:
            return
        worker, job = self.claims.pop()
        result = derived(job)
        try:
            if end == "publish":
                self.store.jobs.publish(job.job_id, worker, result, job.destinations, self.now)
            elif end == "hold":
                self.store.jobs.hold_result(
                    job.job_id, worker, result, HeldBy.QUALITY, "Look.", self.now
                )
            elif end == "fail":
                self.store.jobs.fail_attempt(job.job_id, worker, "Broken", self.now)
            else:
                self.store.jobs.transition(job.job_id, "refuse", self.now, lessee=worker)
        except LeaseLost:
            assert self.store.jobs.get(job.job_id).worker != worker

    @rule()
    def time_passes(self):
        self.now += 2 * LEASE
        self.store.jobs.expire_leases(self.now)

    @rule(outcome=st.sampled_from(["sent", "transient", "permanent"]))
    def send(self, outcome):
        for task in due_at(self.store, self.now):
            for one in task.instances if outcome == "sent" else ():
                self.store.deliveries.record_status(
                    task.delivery_id, one.derived_instance_id, 0, self.now
                )
            self.store.deliveries.finish(task.delivery_id, outcome, "So", self.now)

    @rule(series_uid=SERIES, wish=st.sampled_from(["release", "requeue", "cancel", "publish"]))
    def person(self, series_uid, wish):
        job = self.newest(series_uid)
        if job is None:
            return
        jobs = self.store.jobs
        try:
            if wish == "publish":
                jobs.publish_held(job.id, ["pacs"], self.now)
            else:
                getattr(jobs, wish)(job.id, self.now)
        except IllegalTransition:
            assert jobs.get(job.id) == job

    @invariant()
    def every_instance_is_accounted_for(self):
        ledger = self.store.ledger()
        assert ledger.balanced
        assert ledger.acknowledged == sum(self.received.values())

    @invariant()
    def a_series_has_one_living_generation(self):
        for series_uid in self.received:
            states = [job.state.value for job in self.store.jobs.of_series(series_uid)]
            assert set(states[:-1]) <= {"SUPERSEDED"} and states[-1] != "SUPERSEDED"

    @invariant()
    def only_a_running_job_has_a_worker(self):
        for series_uid in self.received:
            job = self.newest(series_uid)
            assert (job.worker is not None) == (job.state == "RUNNING")


def instance(series_uid, number):
    return NewInstance(
        sop_uid=f"{series_uid}.{number}",
        sop_class="1.2.840.10008.5.1.4.1.1.4",
        series_uid=series_uid,
        study_uid="1",
        modality="MR",
        description="",
        path=Path("in/one.dcm"),
        bytes=1,
        sha256="a",
        attributes_sha256="a",
        transfer_syntax="1.2.840.10008.1.2.1",
        calling_ae="SCANNER",
        header={},
    )


def derived(job):
    uid = f"2.25.{job.job_id}{job.attempt}"
    one = DerivedInstance(
        sop_uid=f"{uid}.1", sop_class="1.2", path=Path("out/one.dcm"), sha256="a", bytes=1
    )
    return DerivedSeries(
        series_uid=uid, instances=(one,), recipe_digest="a", weights_sha256="b", figures={}
    )


@pytest.mark.parametrize(
    ("databases", "examples"), [("sqlite", 25), ("postgresql", 4)], indirect=["databases"]
)
def test_whatever_happens_no_instance_gets_lost(databases, examples):
    run_state_machine_as_test(
        lambda: Life(databases),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
