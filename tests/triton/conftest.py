"""These tests run only when asked for by their marker: they need the package triton."""


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "triton: needs the extra triton; `make test-triton` runs them"
    )


def pytest_ignore_collect(collection_path, config):
    return "triton" not in config.getoption("markexpr") or None
