"""What only a GPU can say, in one command: are the kernels right, and how fast is everything."""
