"""Errors of the service; each knows its DIMSE status and whether trying again can help.

NodeError
├── SettingsError             the configuration is refused; the service does not start
├── InstanceRejected          C000  the instance cannot be kept (PS3.4 B.2.3)
│   ├── OutOfSpace            A700  too little free space, or none to be had now; retryable
│   ├── StoreUnavailable      A700  the database did not commit; retryable
│   ├── NotAnInstance         A900  no usable SOP class or instance UID, or not the announced one
│   └── ConflictingInstance   0111  the SOP instance is known with other content
│       └── CorrectedSince    C000  it is an older version of one that was corrected
├── DatabaseTaken             another node runs on the database
├── IllegalTransition         a state change that states.TRANSITIONS does not know
│   └── FilesGone             the files that it needs were deleted by retention
├── WeightsRecalled           nothing may be made with these weights any more
├── LeaseLost                 the job belongs to somebody else by now
├── UnknownJob                no job or series of that number
├── UnknownPeer               no peer of that name in the configuration
└── GateRefused               the derived series broke a rule of the release gate
"""


class NodeError(Exception):
    """Anything the service refuses."""

    status = 0xC000
    retryable = False
    exit_code = 1


class SettingsError(NodeError):
    """The configuration is refused; the message names the key and the value."""

    exit_code = 2


class CertificateNotValid(SettingsError):
    """The certificate is the right one, but not at this time: results wait for another one."""


class InstanceRejected(NodeError):
    """The instance cannot be kept; the peer gets `status` (PS3.4 B.2.3)."""


class OutOfSpace(InstanceRejected):
    """Less free space than `files.min_free_bytes`, or the file system refuses for now."""

    status = 0xA700
    retryable = True


class StoreUnavailable(InstanceRejected):
    """The database did not commit; the sender should try again."""

    status = 0xA700
    retryable = True


class NotAnInstance(InstanceRejected):
    """The data set is not the SOP instance that the command announced."""

    status = 0xA900


class ConflictingInstance(InstanceRejected):
    """The SOP instance is known with other attributes or pixels."""

    status = 0x0111


class CorrectedSince(ConflictingInstance):
    """The SOP instance was corrected since; what came is an older version, which is not kept.

    Not 0111: senders take that for "it is there" and may delete the only copy of this version.
    """

    status = 0xC000


class DatabaseTaken(NodeError):
    """Another node runs on the database; this one does not start, or ends."""


class IllegalTransition(NodeError):
    """A state change that `states.TRANSITIONS` does not know."""


class FilesGone(IllegalTransition):
    """The job's files were deleted by retention; nothing can be computed or sent from them."""


class WeightsRecalled(NodeError):
    """Nothing may be made with these weights any more; other ones must be configured."""


class LeaseLost(NodeError):
    """The job belongs to another worker by now; this attempt is dropped."""


class UnknownJob(NodeError):
    """No job or series of that number or UID."""


class UnknownPeer(NodeError):
    """No peer of that name in the configuration."""


class GateRefused(NodeError):
    """The derived series broke a named rule of the release gate."""
