"""Raises the limit of open descriptors."""

import resource


def raise_descriptor_limit() -> None:
    """Allow this process and its workers as many descriptors as the system permits.

    A transfer takes four, and the usual limit of 1024 is there for programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
