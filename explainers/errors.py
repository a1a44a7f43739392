"""The exceptions of this library, so that one `except` catches what a user can mend.

ExplainerError
├── ModelError      the model cannot be exposed: no spatial signal, subclassed, several outputs ...
├── LayerError      a named layer does not exist, or is ambiguous
├── MethodError     a method is unknown, or cannot explain this model
└── InputError      images, units or options do not fit the model
"""


class ExplainerError(ValueError):
    """What this library raises when the caller can do something about it."""


class ModelError(ExplainerError):
    """The model cannot be exposed."""


class LayerError(ExplainerError):
    """A layer was named that is not there, or not unique."""


class MethodError(ExplainerError):
    """A method is unknown, or does not fit the model."""


class InputError(ExplainerError):
    """Images, units or options do not fit the model."""
