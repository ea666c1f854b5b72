"""The one error of this package: bad input, with its cure."""


class HubFolderError(ValueError):
    """A folder or a repository that must not be built, verified or pushed; the message ends with the cure."""
