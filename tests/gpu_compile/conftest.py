"""These tests run only when asked for by their marker: they need wheels that nothing else does."""


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "gpu_compile: compiles for a GPU that may be absent; `make test-gpu-compile` runs them",
    )


def pytest_ignore_collect(collection_path, config):
    return "gpu_compile" not in config.getoption("markexpr") or None
