"""Building blocks of HTML reports: page layout, charts as SVG, color maps, text for terminals."""
