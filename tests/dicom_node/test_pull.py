"""Pulling: what is asked for, how fast, by which way, and what is said on a terminal."""

import io
import sys
from argparse import Namespace
from dataclasses import replace

import pytest

from dicom_node.cli.pull import Bar, report
from dicom_node.network.connecting import AssociationFault
from dicom_node.network.found import Counts, FoundSeries, Retrieved
from dicom_node.pixel_files import PixelFiles
from dicom_node.pull import Pace, Puller, PullRefused, Wanted, way_to
from dicom_node.retry import Fault
from dicom_node.store import open_store
from tests.rigs import destination, rig_settings, write_series
from tests.ups_manager import task_manager
from tests.webserver import Told, web_server

UIDS = tuple(f"1.2.{number}" for number in range(1, 8))


@pytest.mark.parametrize(
    "keys",
    [{}, {"accession": " "}, {"accession": "A*"}, {"accession": "A?"}, {"series_uid": "1.2\\1.3"},
     {"series_uid": "*"}, {"series_uid": "1.2", "study_uid": "*"}, {"series_uid": "1.2/../x"},
     {"series_uid": "1.2", "study_uid": ".."}],
)  # fmt: skip
def test_nothing_that_could_mean_the_whole_archive_is_asked(keys):
    with pytest.raises(PullRefused):
        Wanted(**keys)


def test_without_a_limit_a_series_is_one_request_or_what_is_lacking():
    assert list(Pace(0).batches(UIDS, whole=True)) == [()]
    assert list(Pace(0).batches(UIDS, whole=False)) == [UIDS]


@pytest.mark.parametrize(("rate", "sizes"), [(3, [3, 3, 1]), (0.5, [1] * 7), (1000, [7])])
def test_with_a_limit_a_second_is_asked_for_at_a_time(rate, sizes):
    assert [len(batch) for batch in Pace(rate).batches(UIDS, whole=True)] == sizes


def test_the_pace_is_kept_on_average():
    now = [100.0]
    pace = Pace(2.0, clock=lambda: now[0])

    assert pace.wait_s(4) == pytest.approx(2.0)
    now[0] += 2.0
    assert pace.wait_s(2) == pytest.approx(1.0)
    now[0] += 60.0
    assert pace.wait_s(2) == 0.0


class ScriptedWay:
    """A peer that answers with what a test says and sends nothing."""

    def __init__(self, *ends):
        self.ends, self.asked = list(ends), []

    def find(self, wanted):
        return []

    def fetch(self, found, only, tell):
        self.asked.append(only)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        tell(end.counts)
        return end


@pytest.fixture
def puller(tmp_path, monkeypatch):
    monkeypatch.setattr("dicom_node.pull.LATE_S", 0.1)
    store = open_store(f"sqlite:///{tmp_path / 'node.db'}")
    yield Puller(peer=destination(104), way=ScriptedWay(), store=store, pace=Pace(0))
    store.close()


@pytest.mark.parametrize(
    ("end", "failed", "trouble"),
    [
        (Retrieved(counts=Counts(completed=5, failed=2)), 2, ""),
        (Retrieved(counts=Counts(completed=7)), 0, "does it have our address"),
        (Retrieved(counts=Counts(), trouble="it does not know us"), 0, "it does not know us"),
        (AssociationFault(Fault.ABORTED, "gone"), 0, "association aborted (gone)"),
    ],
)
def test_what_did_not_arrive_is_missing_whatever_the_peer_says(puller, end, failed, trouble):
    puller = replace(puller, way=ScriptedWay(end))
    told = []
    found = FoundSeries(study_uid="1", series_uid="2", modality="MR", instances=UIDS)

    done = puller.fetch(found, lambda here, total: told.append((here, total)))

    assert (done.arrived, done.failed, done.missing) == (0, failed, UIDS)
    assert trouble in done.trouble and bool(trouble) == bool(done.trouble)
    assert told[0] == told[-1] == (0, 7)


def test_a_series_without_images_is_no_success(puller, capsys):
    empty = FoundSeries(study_uid="1", series_uid="2", modality="MR")

    done = puller.fetch(empty, lambda here, total: None)
    code = report(Namespace(json=False, source="pacs"), [done], 0, [])

    assert puller.way.asked == []
    assert code == 1 and "1 series have no images: it names no image" in capsys.readouterr().err


def test_a_peer_that_must_not_send_or_has_no_host_is_not_asked(tmp_path):
    settings = rig_settings(tmp_path)
    files = PixelFiles(tmp_path / "in", 0)
    for peer, words in (
        (destination(104), "no source"),
        (destination(104, host="", roles=("source",)), "no host"),
    ):
        with pytest.raises(PullRefused, match=words):
            way_to(peer, settings, None, files)


def test_a_server_without_the_star_gives_the_default_syntax(tmp_path):
    paths = [item.path for item in write_series(tmp_path / "a", 3)]
    with task_manager(paths) as images:

        def older(asked):
            starred = "transfer-syntax=*" in asked.headers.get("accept", "")
            return Told(status=406) if starred else images.answer(asked)

        with web_server(older) as server:
            peer = {"name": "old", "protocol": "dicomweb", "url": server.url}
            settings = rig_settings(tmp_path / "state", peers=[peer])
            store = open_store(settings.database_url)
            way = way_to(settings.peer("old"), settings, store, PixelFiles(tmp_path / "in", 0))
            puller = Puller(peer=settings.peer("old"), way=way, store=store, pace=Pace(0))
            [found] = puller.find(Wanted(series_uid=series_of(images)))
            done = puller.fetch(found, lambda here, total: None)
            store.close()

    assert (done.arrived, done.missing) == (3, ())


def series_of(images):
    """Return the series that the server has."""
    images.schedule("1.2")
    return images.workitems["1.2"]["00404021"]["Value"][0]["0020000E"]["Value"][0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch):
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = Bar("series 1 of 2")
        bar.tell(0, 4)
        bar.tell(4, 4)
        bar.end()
        text = stream.getvalue()
        assert bool(text) == drawn
        assert not drawn or ("series 1 of 2 [####" in text and "4/4" in text)
