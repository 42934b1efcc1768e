"""Until when the node's certificates are valid: one that nobody renewed stops it some night."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from dicom_node.errors import SettingsError
from dicom_node.settings import Settings

SOON = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class Validity:
    """A file of certificates, what it is for, and when the first of them ends."""

    use: str
    path: str
    until: datetime

    def ends_soon(self, now: datetime) -> bool:
        """Return whether somebody should renew it by now."""
        return self.until - now < SOON

    def text(self, now: datetime) -> str:
        """Return how long it is valid, as the page says it."""
        days = (self.until - now) // timedelta(days=1)
        if self.until <= now:
            return f"{self.use} has expired on {self.until:%Y-%m-%d}"
        return f"{self.use} ends in {days} day{'' if days == 1 else 's'}, on {self.until:%Y-%m-%d}"


def files(settings: Settings) -> dict[str, str]:
    """Return the configured files of certificates by the option that names them."""
    named = {
        "tls.certificate": settings.tls.certificate,
        "tls.ca": settings.tls.ca,
        "web.certificate": settings.web.certificate,
        "signing.certificate": settings.signing.certificate,
    }
    return {use: path for use, path in named.items() if path}


def validities(settings: Settings) -> list[Validity]:
    """Return all configured certificates, read anew: they are renewed while the node runs.

    Raises
    ------
    SettingsError
        If a file cannot be read or holds no certificate.
    """
    return [_validity(use, path) for use, path in files(settings).items()]


def _validity(use: str, path: str) -> Validity:
    try:
        found = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except OSError as error:
        raise SettingsError(f"{use}: {path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{use}: {path} holds no certificate: {error}") from None
    return Validity(use=use, path=path, until=min(one.not_valid_after_utc for one in found))
