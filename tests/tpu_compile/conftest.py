"""These tests run only when asked for by their marker: they need libtpu, as nothing else does."""


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "tpu_compile: compiles for TPUs that may be absent; `make test-tpu-compile` runs them",
    )


def pytest_ignore_collect(collection_path, config):
    return "tpu_compile" not in config.getoption("markexpr") or None
