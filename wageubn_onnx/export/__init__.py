"""Export of the integer step for other runtimes: one file a target, one protocol (`base`), one table (`table`)."""
