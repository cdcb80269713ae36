"""Every exception zr_ray raises on purpose. One line: what was wanted, what came, what to do.

All are picklable (they cross Ray processes) and carry only their message.
Left out on purpose: error codes, causes as objects; `raise ... from` keeps the cause in the log.
"""


class ZrRayError(Exception):
    """Base of all errors a user can fix; a job prints the message alone and exits with code 1."""


class ConfigError(ZrRayError):
    """A configuration key or value is not usable."""


class DataError(ZrRayError):
    """An annotated data set, or one record of it, breaks the on-disk format. Names file and line."""


class JudgeError(ZrRayError):
    """A judge folder is missing something, or its tokenizer does not fit the score labels."""


class PlacementError(ZrRayError):
    """The cluster cannot, or did not in time, provide the resources asked for."""


class WeightSyncError(ZrRayError):
    """The rollout engine does not hold the learner's weights after a push."""


class StaleWeightsError(WeightSyncError):
    """A rollout worker was asked for answers of one policy version and holds another."""


class RolloutError(ZrRayError):
    """The rollout engine failed, or its answers do not line up with the requests."""


class CheckpointError(ZrRayError):
    """A checkpoint is missing, incomplete, corrupt, or belongs to another run configuration."""


class NonFiniteError(ZrRayError):
    """A loss, gradient, weight or log-prob became nan or infinite; nothing of it was kept."""


class StoppedError(ZrRayError):
    """A run was told to stop and did, after a checkpoint."""


class DeadlineError(ZrRayError):
    """A wait passed its deadline; the message names what was waited for."""


class RewardError(ZrRayError):
    """A reward request was refused, or some of its items could not be scored."""


class OverloadError(RewardError):
    """The reward service has no room for a request now; the same request may be sent again."""
