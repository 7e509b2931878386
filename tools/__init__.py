"""Programs around the package: converting weights, measuring."""
