"""DICOM over TLS with real certificates, sockets and dcmtk."""

import os
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import contextmanager

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from dicom_node import telemetry
from dicom_node.errors import NodeError, SettingsError
from dicom_node.network import pynetdicom_scu, scu, transport
from dicom_node.network.rejection import notice_rejection
from dicom_node.network.scp import NodeScp
from dicom_node.network.scu import AssociationFault, Timeouts
from dicom_node.network.tls import Credentials
from dicom_node.retry import Fault
from dicom_node.settings import TlsSettings, make_settings
from tests.certificates import Authority
from tests.rigs import MR, SOURCE, dcmtk, destination, running_node, write_series


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def ours(authority):
    return authority.issue("node")


@pytest.fixture(scope="module")
def scanner(authority):
    return authority.issue("scanner", names="DNS:scanner.example")


@pytest.fixture
def node(tmp_path, ours):
    peers = [SOURCE | {"tls": True}]
    with running_node(tmp_path / "state", tls=ours.section, peers=peers) as rig:
        yield rig


def client(issued, *, certificate=True, check=True):
    """Return a client's context, made without any code of ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(issued.ca)
    if certificate:
        context.load_cert_chain(issued.certificate, issued.key)
    if not check:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def associate(port, context, title="MR1"):
    """Return what becomes of an association over `context`; None: without TLS."""
    ae = AE(ae_title=title)
    ae.acse_timeout = ae.dimse_timeout = 5
    ae.add_requested_context(Verification)
    ae.add_requested_context(MR)
    tls = None if context is None else (context, "localhost")
    handlers = [(evt.EVT_CONN_OPEN, pynetdicom_scu.keep_replies)]
    association = ae.associate(
        "127.0.0.1", port, ae_title="SRNODE", tls_args=tls, evt_handlers=handlers
    )
    notice_rejection(association)
    return association


def old(context):
    """Return the context, held to TLS 1.1."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    return context


def test_peer_with_a_good_certificate_is_served(node, scanner, tmp_path):
    [item] = write_series(tmp_path / "a", 1)
    association = associate(node.scp.tls_port, client(scanner))

    assert association.is_established
    assert association.send_c_store(item.path).Status == 0x0000
    assert association.dul.socket.socket.version() == "TLSv1.3"
    association.release()
    assert node.store.ledger().acknowledged == 1


# The caller's context, and what the node's metric calls the refusal.
CALLERS = {
    "no certificate": (
        lambda authority, other, good: client(good, certificate=False),
        "TLS no certificate",
    ),
    "expired": (
        lambda authority, other, good: client(authority.issue("late", days=-1)),
        "TLS certificate",
    ),
    "another authority": (
        lambda authority, other, good: client(other.issue("alien"), check=False),
        "TLS certificate",
    ),
    "no TLS": (lambda authority, other, good: None, "plain to TLS"),
    "TLS 1.1": (lambda authority, other, good: old(client(good)), "TLS version"),
}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("caller", CALLERS)
def test_peer_without_a_good_certificate_is_refused(node, authority, scanner, tmp_path, caller):
    make, kind = CALLERS[caller]
    refused = telemetry.connections_refused.labels(kind=kind)._value
    before = refused.get()
    other = Authority(tmp_path / "other", "other-ca")

    association = associate(node.scp.tls_port, make(authority, other, scanner))

    assert not association.is_established and not association.accepted_contexts
    assert refused.get() == before + 1
    assert node.scp.associations() == 0
    good = associate(node.scp.tls_port, client(scanner))
    assert good.is_established
    good.release()


def test_peer_that_must_use_tls_is_rejected_without(node):
    association = associate(node.scp.port, None)

    assert association.is_rejected
    assert association.acceptor.primitive.result == 1


def test_rejection_reaches_the_peer_over_tls(node, scanner):
    association = associate(node.scp.tls_port, client(scanner), "STRANGER")

    reply = association.acceptor.primitive
    assert association.is_rejected
    assert (reply.result, reply.result_source, reply.diagnostic) == (1, 1, 3)


@pytest.mark.parametrize(("name", "welcome"), [("Scanner.example", True), ("mr2.example", False)])
def test_certificate_must_be_the_one_of_the_peer(tmp_path, ours, scanner, name, welcome):
    peers = [SOURCE | {"tls": True, "tls_name": name}]
    with running_node(tmp_path, tls=ours.section, peers=peers) as node:
        association = associate(node.scp.tls_port, client(scanner))

        assert association.is_established == welcome
        assert association.is_rejected == (not welcome)
        association.release()


def test_one_port_for_tls_alone(tmp_path, ours, scanner):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    section = ours.section | {"port": port}
    with running_node(tmp_path, tls=section, node={"port": port}) as node:
        assert node.scp.port == node.scp.tls_port == port
        assert not associate(port, None).is_established
        association = associate(port, client(scanner))
        assert association.is_established
        association.release()


def test_silent_and_dripping_handshakes_do_not_hold_up_others(tmp_path, ours, scanner):
    with running_node(tmp_path, tls=ours.section, node={"acse_timeout_s": 1.0}) as node:
        address = ("127.0.0.1", node.scp.tls_port)
        held = [socket.create_connection(address) for _ in range(50)]
        for each in held[::2]:
            each.sendall(b"\x16\x03\x01")
        started = time.monotonic()
        association = associate(node.scp.tls_port, client(scanner))

        assert association.is_established and time.monotonic() - started < 1
        association.release()
        held[0].settimeout(5)
        assert held[0].recv(1) == b""
        for each in held:
            each.close()


def storescu(port, issued, *options):
    """Return dcmtk's C-STORE command line over TLS."""
    program = dcmtk("storescu")
    if program is None:
        pytest.skip("dcmtk is not installed")
    files = ["+tls", issued.key, issued.certificate, "+cf", issued.ca]
    return [program, "-aet", "MR1", "-aec", "SRNODE", *files, *options, "127.0.0.1", str(port)]


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_dcmtk_sends_over_tls(node, scanner, tmp_path, profile):
    paths = [item.path for item in write_series(tmp_path / "a", 3)]
    command = [*storescu(node.scp.tls_port, scanner, profile), *paths]

    done = subprocess.run(
        command, env=os.environ | {"TCP_NODELAY": "1"}, capture_output=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert node.store.ledger().acknowledged == 3


def test_dcmtk_with_an_expired_certificate_is_refused(node, authority, tmp_path):
    [item] = write_series(tmp_path / "a", 1)
    command = storescu(node.scp.tls_port, authority.issue("late", days=-1))

    done = subprocess.run([*command, item.path], capture_output=True, timeout=60)

    assert done.returncode != 0
    assert node.store.ledger().acknowledged == 0


def replace(issued, newer):
    """Put newer files in the place of the ones in use, as a renewal does."""
    for name in ("certificate", "key"):
        target = getattr(issued, name)
        fresh = target.with_suffix(".new")
        shutil.copy(getattr(newer, name), fresh)
        fresh.replace(target)


def shown(port, issued):
    """Return the certificate that the node shows."""
    context = client(issued)
    with socket.create_connection(("127.0.0.1", port)) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            return secure.getpeercert(True)


def test_new_certificate_is_taken_without_a_restart(tmp_path, authority, scanner, capsys):
    issued, newer = authority.issue("first"), authority.issue("second")
    with running_node(tmp_path / "state", tls=issued.section) as node:
        going_on = associate(node.scp.tls_port, client(scanner))
        before = shown(node.scp.tls_port, scanner)

        replace(issued, newer)

        assert shown(node.scp.tls_port, scanner) != before
        assert going_on.send_c_echo().Status == 0x0000
        going_on.release()
    assert "tls.reloaded" in capsys.readouterr().out


def test_broken_new_certificate_leaves_the_old_one_in_use(tmp_path, authority, scanner, capsys):
    issued = authority.issue("third")
    with running_node(tmp_path / "state", tls=issued.section) as node:
        before = shown(node.scp.tls_port, scanner)
        issued.certificate.write_text("-----BEGIN CERTIFICATE-----\nnothing\n")

        assert shown(node.scp.tls_port, scanner) == before
        assert shown(node.scp.tls_port, scanner) == before
    said = capsys.readouterr().out
    assert said.count("tls.kept_old") == 1
    assert f"tls.certificate = {issued.certificate}: no certificate in PEM" in said


def spoil(name, how):
    """Return a function that spoils one file of a certificate."""
    return lambda issued, other: how(getattr(issued, name), other)


BROKEN = {
    "certificate: No such file": spoil("certificate", lambda path, _: path.unlink()),
    "key: No such file": spoil("key", lambda path, _: path.unlink()),
    "certificate: no certificate in PEM": spoil("certificate", lambda path, _: path.write_text("")),
    "ca: no certificate in PEM": spoil("ca", lambda path, _: path.write_text("junk")),
    "key: no private key in PEM": spoil("key", lambda path, _: path.write_text("junk")),
    "key: not the key of": spoil("key", lambda path, other: shutil.copy(other.key, path)),
    "key: mode 0644 opens the key": spoil("key", lambda path, _: path.chmod(0o644)),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_file_that_cannot_be_used_is_named(tmp_path, ours, fault):
    issued = Authority(tmp_path).issue("node")
    name, _, words = fault.partition(": ")
    BROKEN[fault](issued, ours)

    with pytest.raises(SettingsError) as error:
        Credentials(TlsSettings(**issued.section))

    assert f"tls.{name} = {getattr(issued, name)}: {words}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"tls": {"certificate": "a.pem"}}, "tls: key is missing"),
        ({"tls": {"ca": "a.pem"}}, "tls: certificate is missing"),
        (
            {"peers": [SOURCE | {"tls": True}]},
            "'scanner' wants TLS, but .tls. names no certificate",
        ),
    ],
)
def test_half_a_configuration_is_refused(data, words):
    with pytest.raises(SettingsError, match=words):
        make_settings(data)


def test_taken_tls_port_is_named(node, ours):
    taken = node.settings.tls.model_copy(update={"port": node.scp.tls_port})
    settings = node.settings.model_copy(update={"tls": taken})

    with pytest.raises(NodeError, match=f"cannot listen on 127.0.0.1:{node.scp.tls_port} for TLS"):
        NodeScp(settings, node.store, node.files).start()


@contextmanager
def archive(issued, received):
    """Yield a peer that is called with TLS and stores what it gets in `received`."""

    def store(event):
        received.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    ae = AE(ae_title="PACS")
    ae.add_supported_context(Verification)
    ae.add_supported_context(MR)
    policy = transport.Policy(tls=issued.credentials)
    server = transport.listen(ae, ("127.0.0.1", 0), [(evt.EVT_C_STORE, store)], policy)
    try:
        yield destination(server.server_address[1], "PACS", tls=True)
    finally:
        transport.close(server, 0.0)


def test_node_sends_over_tls(tmp_path, authority, ours):
    items, received = write_series(tmp_path / "a", 3), []

    with archive(authority.issue("pacs"), received) as peer:
        outcomes = list(scu.send(items, peer, "SRNODE", timeouts=Timeouts(tls=ours.credentials)))

    assert [outcome.fault for outcome in outcomes] == [0x0000] * 3
    assert received == [item.sop_uid for item in items]


ARCHIVES = {
    "IP address mismatch": lambda authority, other: authority.issue("wrong", names="DNS:elsewhere"),
    "certificate has expired": lambda authority, other: authority.issue("late", days=-1),
    "self-signed certificate in certificate chain": lambda authority, other: other.issue("alien"),
}


@pytest.mark.parametrize("fault", ARCHIVES)
def test_node_sends_nothing_to_an_archive_that_it_cannot_verify(tmp_path, authority, ours, fault):
    other = Authority(tmp_path / "other", "other-ca")
    items, received = write_series(tmp_path / "a", 1), []
    issued = ARCHIVES[fault](authority, other)

    with archive(issued, received) as peer:
        [outcome] = scu.send(items, peer, "SRNODE", timeouts=Timeouts(tls=ours.credentials))

    assert outcome.fault is Fault.UNREACHABLE and not received
    assert outcome.comment.startswith(f"TLS with 127.0.0.1:{peer.port}: {fault}"), outcome.comment


def test_archive_may_be_known_by_another_name(tmp_path, authority, ours):
    received = []
    with archive(authority.issue("pacs2", names="DNS:pacs.example"), received) as peer:
        peer = peer.model_copy(update={"tls_name": "pacs.example"})

        scu.echo(peer, "SRNODE", Timeouts(tls=ours.credentials))


def test_peer_that_wants_tls_is_never_called_without(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        peer = destination(nobody.getsockname()[1], tls=True)

        with pytest.raises(AssociationFault, match="no certificate of ours"):
            scu.echo(peer, "SRNODE")
