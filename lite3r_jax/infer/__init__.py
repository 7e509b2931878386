"""From photos to scenes: memory plan, forward pass, run report and the command."""
