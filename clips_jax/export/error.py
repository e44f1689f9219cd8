"""The one error of exporting."""


class CannotExport(ValueError):
    """The target format cannot hold the model, or a package that is needed is not there; the message says which."""
