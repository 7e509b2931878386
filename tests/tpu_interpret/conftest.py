"""These tests run in a process of their own: `tests/kernels/test_tpu_interpreter.py` starts it."""


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "tpu_interpret: runs TPU kernels on a CPU; see tests/kernels/test_tpu_interpreter.py",
    )


def pytest_ignore_collect(collection_path, config):
    return "tpu_interpret" not in config.getoption("markexpr") or None
