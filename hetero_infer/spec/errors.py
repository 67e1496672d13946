"""The errors a user can cause or meet. Each says what, where and the way out; each has an exit code."""


class HeteroInferError(Exception):
    """Something failed while running."""

    exit_code = 1


class InputError(HeteroInferError):
    """A file, flag or request that cannot be used as it is."""

    exit_code = 2


class InfeasibleError(HeteroInferError):
    """No plan meets every constraint."""

    exit_code = 3
