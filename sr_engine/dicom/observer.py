"""Ourselves as the observer of a document (PS3.16 TID 1002, TID 1004)."""

from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext
from pydicom.sr.codedict import codes

from sr_engine.dicom.template import MANUFACTURER, MODEL_NAME
from sr_engine.dicom.uids import device_uid
from sr_engine.dicom.writer import Result


def device_observer(result: Result) -> ObserverContext:
    """Return the device that observed: this software with these weights, always by one UID."""
    serial_number = result.provenance.bundle_sha256[:16] or "NONE"
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=device_uid(MODEL_NAME, serial_number),
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=serial_number,
        ),
    )
