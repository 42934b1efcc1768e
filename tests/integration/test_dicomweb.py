"""DICOMweb against Orthanc's plugin: delivery by STOW-RS, a pull by QIDO-RS and WADO-RS."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from pydicom.uid import JPEG2000Lossless, generate_uid

from dicom_node import withdrawal
from dicom_node.cli import main
from dicom_node.network import scu
from dicom_node.network.parcels import Item
from dicom_node.sender import Sender
from dicom_node.store import open_store, schema
from dicom_node.worker import Worker
from tests.dicom_node.nodes import copying_engine, queued_node
from tests.dicom_node.test_sender import delivery, publish
from tests.dicom_node.web.test_access import site
from tests.integration.partners import DICOMWEB, Orthanc, free_port, wait_for
from tests.rigs import NOW, destination, due_at, make_instance, rig_settings, write_instance

QUICK = {"interval_s": 0.1, "timeout_s": 20.0, "backoff_first_s": 0.1, "backoff_last_s": 0.5}


@pytest.fixture(scope="module")
def web_archive(programs, tmp_path_factory):
    """A running Orthanc with DICOMweb for all tests: each brings its own UIDs."""
    if not Path(DICOMWEB).is_file():
        pytest.skip("Orthanc's DICOMweb (Debian: orthanc-dicomweb) is not installed")
    orthanc = Orthanc(tmp_path_factory.mktemp("orthanc"), free_port(), plugins=[DICOMWEB])
    orthanc.start()
    yield orthanc
    orthanc.stop()


def kept(archive, task):
    """Return how many instances of the delivery's series the archive has."""
    return [len(one["Instances"]) for one in archive.series(task.series_uid)]


@pytest.fixture
def store(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'node.db'}")
    yield store
    store.close()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_result_is_delivered_when_orthanc_shows_every_instance(
    web_archive, store, tmp_path, lost
):
    vna = {"name": "pacs", "protocol": "dicomweb", "url": web_archive.url}
    settings = rig_settings(tmp_path, peers=[vna | {"roles": ["destination"]}], sending=QUICK)
    job_id = publish(store, tmp_path / "a")
    [task] = due_at(store, NOW)
    uids = [each.sop_uid for each in task.instances]
    # As if it had answered success for them and stored nothing.
    store.deliveries.record_present(task.delivery_id, uids[:lost], NOW)
    sender = Sender(store, settings)
    sender.start()
    try:
        state = lambda: store.jobs.get(job_id).state  # noqa: E731
        wait_for("the job ends", lambda: state() in ("DELIVERED", "DEAD"), 60)
    finally:
        sender.stop()

    assert state() == "DELIVERED", delivery(store, job_id)
    assert delivery(store, job_id)["state"] == "COMMITTED"
    assert kept(web_archive, task) == [4]


def test_what_is_there_is_not_sent_again(web_archive, store, tmp_path):
    vna = {"name": "pacs", "protocol": "dicomweb", "url": web_archive.url}
    settings = rig_settings(tmp_path, peers=[vna | {"roles": ["destination"]}], sending=QUICK)
    job_id = publish(store, tmp_path / "a")
    [task] = due_at(store, NOW)
    first = [
        Item(key=number, sop_uid=each.sop_uid, path=each.path)
        for number, each in enumerate(task.instances[:3])
    ]
    peer = destination(web_archive.port, "ORTHANC")
    assert {outcome.fault for outcome in scu.send(first, peer, "SRNODE")} == {0}

    Sender(store, settings, clock=lambda: NOW).run_once(NOW)

    [told] = store.series.listing()[0]["deliveries"]
    assert (told["sent"], told["committed"]) == (4, 4)
    assert store.jobs.get(job_id).state == "DELIVERED"
    assert kept(web_archive, task) == [4]
    # Only what was missing has an answer to a request of ours.
    assert [row["state"] for row in store.deliveries.of_job(job_id)] == ["COMMITTED"]
    with store.database.reading() as connection:
        statuses = connection.execute(sa.select(schema.delivery_instance.c.status)).scalars().all()
    assert sorted(statuses, key=str) == [0, None, None, None]


def test_every_form_and_companion_arrives_and_is_rejected_at_a_recall(web_archive, tmp_path):
    web = {"protocol": "dicomweb", "roles": ["destination"], "url": web_archive.url}
    peers = [
        web | {"name": "pacs", "companions": ["key_objects"]},
        web | {"name": "research", "form": "enhanced"},
    ]
    node = queued_node(tmp_path, peers=peers)
    Worker(node.settings, node.store, engine=copying_engine()).run_once()
    made = Counter(one.series_uid for one in node.store.jobs.derived(node.job.id))
    Sender(node.store, node.settings).run_once(datetime.now(UTC))

    told = {one["destination"]: one["state"] for one in node.store.deliveries.of_job(node.job.id)}
    assert told == {"pacs": "COMMITTED", "research": "COMMITTED"}
    assert sorted(made.values()) == [1, 1, made[node.job.derived_series_uid]]
    for series_uid, count in made.items():
        [series] = web_archive.series(series_uid)
        assert len(series["Instances"]) == count

    withdrawal.recall(node.store, node.job.weights_sha256, "a test", datetime.now(UTC))
    withdrawal.send_notes(node.store, node.settings, datetime.now(UTC))
    Sender(node.store, node.settings).run_once(datetime.now(UTC))

    [note] = node.store.jobs.notes(node.job.series_id)
    assert (node.job.state, note.state) == ("CANCELLED", "DELIVERED"), note.reason
    [series] = web_archive.series(note.derived_series_uid)
    assert series["MainDicomTags"]["Modality"] == "KO"
    node.store.close()


def pull(folder, url, capsys, *arguments):
    """Run `dicom-node pull` from a server; return exit code, stdout and stderr."""
    path = folder / "node.toml"
    path.write_text(
        f'[node]\nstate_dir = "{folder / "state"}"\n[files]\nmin_free_bytes = 0\n'
        f'[[peers]]\nname = "vna"\nprotocol = "dicomweb"\nurl = "{url}"\n'
    )
    capsys.readouterr()
    code = main(["pull", "--config", str(path), "--from", "vna", *arguments])
    return code, *capsys.readouterr()


@pytest.fixture
def study(web_archive, tmp_path):
    """A study in the archive: 6 images, one more of which is compressed, and another modality."""
    study_uid, series_uid = generate_uid(), generate_uid()
    items = []
    (tmp_path / "files").mkdir()
    for number in range(1, 9):
        dataset = make_instance(
            number,
            SOPInstanceUID=generate_uid(),
            SeriesInstanceUID=generate_uid() if number == 8 else series_uid,
            StudyInstanceUID=study_uid,
            AccessionNumber=str(study_uid)[-16:],
            Modality="PR" if number == 8 else "MR",
        )
        syntax = {"syntax": JPEG2000Lossless} if number == 7 else {}
        path = write_instance(tmp_path / "files", dataset, **syntax)
        items.append(Item(key=number, sop_uid=str(dataset.SOPInstanceUID), path=path))
    outcomes = scu.send(items, destination(web_archive.port, "ORTHANC"), "SRNODE")
    assert {outcome.fault for outcome in outcomes} == {0}
    return study_uid, series_uid, str(study_uid)[-16:]


def test_an_accession_number_is_pulled_once(study, web_archive, tmp_path, capsys):
    code, out, err = pull(tmp_path, web_archive.url, capsys, "--accession", study[2], "--json")

    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["arrived"], told["missing"]) == (7, 0)
    [series] = told["series"]
    assert (series["series_uid"], series["study_uid"]) == (study[1], study[0])
    assert [one["modality"] for one in told["left_there"]] == ["PR"]

    code, out, _ = pull(tmp_path, web_archive.url, capsys, "--accession", study[2])
    assert code == 0 and "0 images arrived, 7 were here, 0 are missing" in out

    store = open_store(f"sqlite:///{tmp_path / 'state' / 'node.db'}")
    [row] = store.series.listing()
    syntaxes = {one.transfer_syntax for one in store.series.all_instances()}
    store.close()
    assert (row["series_uid"], row["instances"]) == (study[1], 7)
    assert JPEG2000Lossless in syntaxes, "it was decoded on its way"


def test_a_series_is_pulled_at_a_rate_and_what_is_not_there_is_said(
    study, web_archive, tmp_path, capsys
):
    code, out, err = pull(tmp_path, web_archive.url, capsys, "--series", study[1], "--rate", "5")
    assert (code, err) == (0, "") and "7 images, 7 arrived" in out

    code, _, err = pull(tmp_path, web_archive.url, capsys, "--series", "1.2.3.4711")
    assert code == 1 and f"vna ({web_archive.url}) has nothing of that series" in err

    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    code, _, err = pull(tmp_path, url, capsys, "--accession", "WEB-1")
    assert code == 1 and "no connection" in err and len(err.splitlines()) == 1


def test_orthanc_stores_here_by_stow_rs(study, web_archive, tmp_path):
    with site(tmp_path / "node", stow=True) as running:
        server = {"Url": f"{running.url}dicom-web/"}
        server |= {"HttpHeaders": {"Authorization": f"Bearer {running.tokens['sender']}"}}
        rest = httpx.Client(base_url=f"http://127.0.0.1:{web_archive.http}", trust_env=False)
        with rest:
            put = rest.put("/dicom-web/servers/node", json=server)
            assert put.status_code == 200, put.text
            resources = [one["ID"] for one in web_archive.series(study[1])]
            order = {"Resources": resources, "Synchronous": True}
            answer = rest.post("/dicom-web/servers/node/stow", json=order, timeout=60)

        arrived = running.node.store.series.listing()
        [row] = [row for row in arrived if row["series_uid"] == study[1]]
        assert (answer.status_code, row["instances"]) == (200, 7), answer.text
        assert len(arrived) == 2, "the phantom of the site, and the series"
