"""Certificates for tests, made on the spot by the openssl program."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from dicom_node.network.tls import Credentials
from dicom_node.settings import TlsSettings

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: object) -> None:
    """Run one openssl command; skip the test where there is no openssl."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    command = [program, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate, its key, and whom its owner trusts."""

    certificate: Path
    key: Path
    ca: Path

    @property
    def section(self) -> dict[str, object]:
        """Return the [tls] section of a node that has them."""
        names = ("certificate", "key", "ca")
        return {name: str(getattr(self, name)) for name in names} | {"port": 0}

    @property
    def credentials(self) -> Credentials:
        """Return them as the node reads them."""
        return Credentials(TlsSettings(**self.section))


class Authority:
    """A certification authority in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        files = ("-keyout", self._key, "-out", self.certificate)
        openssl("req", "-x509", *CURVE, *files, "-subj", f"/CN={name}", "-days", 30)

    def issue(
        self, name: str, *, names: str = "DNS:localhost,IP:127.0.0.1", days: int = 30
    ) -> Issued:
        """Return a certificate for `names`; with negative `days` it has expired."""
        request, extra = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        openssl("req", *CURVE, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        extra.write_text(f"subjectAltName={names}\n")
        key.chmod(0o600)
        signer = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        files = ("-in", request, "-extfile", extra, "-out", certificate)
        openssl("x509", "-req", *signer, *files, "-days", days)
        return Issued(certificate=certificate, key=key, ca=self.certificate)


@dataclass(frozen=True, kw_only=True)
class SigningCertificate:
    """A certificate for digital signatures, signed by itself, and its RSA key."""

    certificate: Path
    key: Path

    @property
    def section(self) -> dict[str, str]:
        """Return the [signing] section of a node that has it."""
        return {"certificate": str(self.certificate), "key": str(self.key)}


def signing_certificate(folder: Path, kind: str = "rsa:2048") -> SigningCertificate:
    """Return a new certificate in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = SigningCertificate(certificate=folder / "signing.pem", key=folder / "signing.key")
    files = ("-keyout", made.key, "-out", made.certificate)
    new = CURVE if kind == "ec" else ("-newkey", kind, "-nodes")
    openssl("req", "-x509", *new, *files, "-subj", "/CN=node", "-days", 30)
    made.key.chmod(0o600)
    return made
