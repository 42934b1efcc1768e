"""The DICOM network: who may talk to us, what we accept, how we send.

pynetdicom is imported in this package only.
"""

from pynetdicom import _config

# Its own event logging writes identifiers and costs a tenth of the receive rate.
_config.LOG_HANDLER_LEVEL = "none"
# A file is sent as it lies on the disk, without decoding it.
_config.STORE_SEND_CHUNKED_DATASET = True
