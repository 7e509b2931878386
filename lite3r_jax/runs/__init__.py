"""What a run does, one file for each kind: `run(experiment) -> exit code`."""
