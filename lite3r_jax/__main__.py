"""`python -m lite3r_jax` is the program `lite3r`."""

from lite3r_jax.cli.lite3r import program

if __name__ == "__main__":
    program()
