"""Programs around the package that convert weights, make data, train and measure."""
