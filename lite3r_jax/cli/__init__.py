"""The command line: `lite3r COMMAND ...`, and the same by --config=RECIPE --mode=MODE."""
