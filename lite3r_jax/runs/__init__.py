"""The runs of the command line, one file for each kind: `run(experiment) -> exit code`."""
