"""The configured weights, and whether this machine can use them."""

from functools import cache
from typing import TYPE_CHECKING

from dicom_node.settings import Settings

if TYPE_CHECKING:
    from sr_engine.model.bundle import Bundle


@cache
def load_bundle(weights: str, sha256: str) -> "Bundle":
    """Return the weights, loaded once a process.

    Raises
    ------
    WeightsError
        If the file is damaged, or is not the one that the configuration expects.
    """
    from sr_engine.model.bundle import load

    return load(weights, sha256 or None)


def usable_weights(settings: Settings) -> str:
    """Return the SHA-256 of the configured weights, once they and the device can be used.

    Raises
    ------
    EngineError
        If they cannot: no job would come to its end.
    """
    from sr_engine.model.run import choose_device

    choose_device(settings.engine.device)
    return load_bundle(settings.engine.weights, settings.engine.weights_sha256).sha256
