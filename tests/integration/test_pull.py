"""`dicom-node pull` from real archives: Orthanc and dcmtk's dcmqrscp, by C-MOVE and by C-GET."""

import json
from contextlib import contextmanager

import pytest
from pydicom.uid import EnhancedSRStorage, JPEG2000Lossless, generate_uid

from dicom_node.cli import main
from dicom_node.network import scu
from dicom_node.network.found import FoundSeries
from dicom_node.network.parcels import Item
from dicom_node.network.retrieve import to_offer
from dicom_node.network.scp import storage_classes
from dicom_node.settings import make_settings
from dicom_node.store import open_store
from dicom_node.syntaxes import TRANSFER_SYNTAXES
from tests.integration.partners import Dcmqrscp, Orthanc, find_program, free_port
from tests.rigs import destination, make_instance, running_node, write_instance

ACCESSION = "ACC-1"
ALL = storage_classes(make_settings({}))
NAMELESS = {"study_uid": "1.2", "series_uid": "1.3", "modality": "SR"}


class Study:
    """A study of two MR series and one of another modality, and a series of another study."""

    def __init__(self, folder):
        self.uid = generate_uid()
        self.long = self._series(folder / "long", 12, ACCESSION, self.uid)
        self.short = self._series(folder / "short", 3, ACCESSION, self.uid)
        self.report = self._series(folder / "pr", 1, ACCESSION, self.uid, Modality="PR")
        self.other = self._series(folder / "other", 5, "ACC-11", generate_uid())

    def _series(self, folder, count, accession, study_uid, **values):
        folder.mkdir()
        series_uid, items = generate_uid(), []
        for number in range(1, count + 1):
            dataset = make_instance(
                number,
                SOPInstanceUID=generate_uid(),
                SeriesInstanceUID=series_uid,
                StudyInstanceUID=study_uid,
                AccessionNumber=accession,
                StudyDate="20260101",
                StudyTime="101010",
                StudyID="1",
                SeriesNumber=count,
                **values,
            )
            path = write_instance(folder, dataset)
            items.append(Item(key=number, sop_uid=str(dataset.SOPInstanceUID), path=path))
        return str(series_uid), items

    def items(self):
        return [item for _, items in (self.long, self.short, self.report, self.other)
                for item in items]  # fmt: skip


class Site:
    """Both archives with the study, and the configuration of a node that they know."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.study = Study(folder)
        self.archives = [
            Orthanc(folder / "orthanc", self.port).start(),
            Dcmqrscp(folder / "qrscp", self.port).start(),
        ]
        for archive in self.archives:
            peer = destination(archive.port, archive.ae_title)
            outcomes = scu.send(self.study.items(), peer, "SRNODE")
            assert {outcome.fault for outcome in outcomes} == {0}

    def settings(self, state, ae_title="SRNODE"):
        peers = [
            {
                "name": f"{archive.ae_title.lower()}-{way}",
                "ae_title": archive.ae_title,
                "host": "127.0.0.1",
                "port": archive.port,
                "retrieve": way,
            }
            for archive in self.archives
            for way in ("move", "get")
        ]
        node = {"state_dir": str(state), "port": self.port, "ae_title": ae_title}
        return make_settings({"node": node, "files": {"min_free_bytes": 0}, "peers": peers})

    def stop(self):
        for archive in self.archives:
            archive.stop()


@pytest.fixture(scope="module")
def site(programs, tmp_path_factory):
    if find_program("dcmqrscp") is None:
        pytest.skip("dcmqrscp (Debian: dcmtk) is not installed")
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.stop()


@pytest.fixture
def pull(site, tmp_path, capsys):
    """Run `dicom-node pull` on a new state folder; return exit code, stdout and stderr."""

    def run(*arguments, ae_title="SRNODE"):
        settings = site.settings(tmp_path / "state", ae_title)
        path = tmp_path / "node.toml"
        path.write_text(as_toml(settings))
        code = main(["pull", "--config", str(path), *arguments])
        return code, *capsys.readouterr()

    return run


def as_toml(settings):
    """Return the part of a configuration that these tests need."""
    node = settings.node
    lines = [
        f'[node]\nae_title = "{node.ae_title}"\nport = {node.port}',
        f'state_dir = "{node.state_dir}"\n[files]\nmin_free_bytes = 0',
    ]
    for peer in settings.peers:
        lines += [
            f'[[peers]]\nname = "{peer.name}"\nae_title = "{peer.ae_title}"',
            f'host = "127.0.0.1"\nport = {peer.port}\nretrieve = "{peer.retrieve}"',
        ]
    return "\n".join(lines)


@contextmanager
def received(folder):
    """Yield what the state folder holds: series and how many images of each."""
    store = open_store(f"sqlite:///{folder / 'node.db'}")
    try:
        yield {row["series_uid"]: row["instances"] for row in store.series.listing()}
    finally:
        store.close()


WAYS = ["orthanc-move", "orthanc-get", "qrscp-move", "qrscp-get"]


@pytest.mark.parametrize("peer", WAYS)
def test_every_mr_series_of_an_accession_number_arrives_once(site, pull, tmp_path, peer):
    code, out, err = pull("--from", peer, "--accession", ACCESSION, "--json")

    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["arrived"], told["known"], told["missing"]) == (15, 0, 0)
    assert [one["modality"] for one in told["left_there"]] == ["PR"]
    with received(tmp_path / "state") as series:
        assert series == {site.study.long[0]: 12, site.study.short[0]: 3}

    code, out, _ = pull("--from", peer, "--accession", ACCESSION)
    assert code == 0
    assert "0 images arrived, 15 were here, 0 are missing; 1 series of other modalities" in out


@pytest.mark.parametrize("peer", WAYS)
def test_one_series_arrives_by_its_uid_alone_at_a_limited_rate(site, pull, tmp_path, peer):
    series_uid = site.study.other[0]

    code, out, err = pull("--from", peer, "--series", series_uid, "--rate", "4")

    assert (code, err) == (0, "")
    assert "5 images, 5 arrived" in out
    with received(tmp_path / "state") as series:
        assert series == {series_uid: 5}


@pytest.mark.parametrize("peer", ["orthanc-move", "qrscp-move"])
def test_an_archive_that_does_not_know_us_is_told_from_others(site, pull, peer):
    code, out, err = pull("--from", peer, "--accession", ACCESSION, ae_title="NOBODY")

    assert code == 1
    assert len(err.splitlines()) == 1
    assert "NOBODY" in err or "alling AE title" in err, err


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--accession", "NO-SUCH"), "has nothing of accession number 'NO-SUCH'"),
        (("--series", "1.2.3.4711"), "has nothing of that series"),
        (("--accession", "ACC*"), "has wildcards"),
        (("--accession", " "), "is needed"),
    ],
)
def test_nothing_is_found_and_nothing_unbounded_is_asked(pull, asked, words):
    code, out, err = pull("--from", "qrscp-get", *asked)

    assert (code, out) == (1, "")
    assert words in err and len(err.splitlines()) == 1


def test_the_running_node_receives_what_a_move_brings(site, tmp_path, pull):
    settings = site.settings(tmp_path / "state")
    sections = settings.model_dump(mode="json")
    with running_node(tmp_path / "state", node={"port": site.port}, peers=sections["peers"]) as rig:
        code, out, err = pull("--from", "orthanc-move", "--accession", ACCESSION)

        assert (code, err) == (0, "")
        assert sum(row["instances"] for row in rig.store.series.listing()) == 15


def test_a_class_that_no_mr_series_has_is_negotiated_where_a_series_has_it(site, pull, tmp_path):
    assert EnhancedSRStorage not in dict(to_offer(FoundSeries(**NAMELESS), ALL, TRANSFER_SYNTAXES))
    folder = tmp_path / "sr"
    folder.mkdir()
    dataset = make_instance(
        1, SOPInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid(), Modality="SR",
        StudyInstanceUID=generate_uid(), AccessionNumber="SR", StudyDate="20260101",
        StudyTime="101010", StudyID="1", SeriesNumber=1, SOPClassUID=EnhancedSRStorage,
    )  # fmt: skip
    item = Item(key=1, sop_uid=str(dataset.SOPInstanceUID), path=write_instance(folder, dataset))
    [outcome] = scu.send([item], destination(site.archives[0].port, "ORTHANC"), "SRNODE")
    assert outcome.fault == 0, outcome

    code, out, err = pull("--from", "orthanc-get", "--series", dataset.SeriesInstanceUID)

    assert (code, err) == (0, "")
    with received(tmp_path / "state") as series:
        assert series == {dataset.SeriesInstanceUID: 1}


@pytest.mark.parametrize("peer", ["orthanc-move", "orthanc-get"])
def test_compressed_images_arrive_as_they_are_kept(site, pull, tmp_path, peer):
    folder = tmp_path / "j2k"
    folder.mkdir()
    dataset = make_instance(
        1, SOPInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid(),
        StudyInstanceUID=generate_uid(), AccessionNumber=f"J2K-{peer}", StudyDate="20260101",
        StudyTime="101010", StudyID="1", SeriesNumber=1,
    )  # fmt: skip
    path = write_instance(folder, dataset, JPEG2000Lossless)
    item = Item(key=1, sop_uid=str(dataset.SOPInstanceUID), path=path)
    orthanc = site.archives[0]
    [outcome] = scu.send([item], destination(orthanc.port, "ORTHANC"), "SRNODE")
    assert outcome.fault == 0, outcome

    code, out, err = pull("--from", peer, "--accession", f"J2K-{peer}")

    assert (code, err) == (0, "")
    with received(tmp_path / "state") as series:
        assert series == {dataset.SeriesInstanceUID: 1}
