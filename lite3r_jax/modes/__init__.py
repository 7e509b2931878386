"""The modes of the command line, one file each: `run(experiment) -> exit code`."""
