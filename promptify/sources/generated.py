"""The door to generated data: the log and its oracle's numbers, not the generator's tables."""

from promptify.sources import SourceData
from promptify.sources.job_market import job_market


def generated_job_market(*, seed: int = 0) -> SourceData:
    """The embedded default: a job market of about 2,000 members, 1,500 jobs and 40,000 impressions.

    Args:
        seed: the same seed gives the same market.
    """
    return job_market(seed=seed)
