"""The one exception family of the project.

Every message says what was expected, what was found and what to do. The commands print the message as
one line and exit with :attr:`IResNetError.exit_code`; a traceback appears only under ``--debug``.
"""

from __future__ import annotations


class IResNetError(Exception):
    """Base of every error this project raises on purpose."""

    #: 1: it failed; 2: what was passed cannot be used; 3 and 4: the verdict on accuracy.
    exit_code = 1


class InputError(IResNetError):
    """The caller passed something that cannot be used: a path, an option, an array."""

    exit_code = 2


class ImageError(InputError):
    """One image cannot be decoded or is not acceptable. It costs that image only."""


class WeightsError(IResNetError):
    """A checkpoint is missing, cannot be read or does not fit the model."""

    exit_code = 2


class GraphError(IResNetError):
    """An ONNX graph is not what a pass needs, or a pass changed its results."""

    exit_code = 2


class BuildError(IResNetError):
    """A target could not be built."""


class BundleError(IResNetError):
    """A bundle is missing, damaged, of an unknown version, or made for another machine."""

    exit_code = 2


class TargetUnavailableError(IResNetError):
    """A backend cannot run here: a library, a driver or a device is missing."""


class ProcessError(IResNetError):
    """An engine was used in another process than the one that opened it, or was to be sent there."""


class MissingDependencyError(IResNetError):
    """A package of an extra is not installed; the message names the extra."""


class KnownAnswersError(IResNetError):
    """A plan does not give the logits of its own graph on this machine."""


class UntrainedError(IResNetError):
    """Predictions were asked of an engine built from random weights."""


class AccuracyError(IResNetError):
    """An engine misses its accuracy threshold."""

    exit_code = 3


class InconclusiveError(AccuracyError):
    """Too few images to tell whether an engine is good enough."""

    exit_code = 4


class DeviceError(IResNetError):
    """A CUDA or TensorRT call failed while batches were running.

    Attributes:
        sticky: the CUDA context is broken for good: close the runner, and start a new process to use the GPU again.
        status: ``CUresult`` of the call that failed; 0 where TensorRT only said that something did.
    """

    def __init__(self, message: str, *, sticky: bool = False, status: int = 0) -> None:
        super().__init__(message)
        self.sticky, self.status = sticky, status


class DeviceMemoryError(DeviceError):
    """Not enough device or pinned memory."""


class UnsupportedError(IResNetError):
    """The backend cannot do this, whatever the arguments."""
