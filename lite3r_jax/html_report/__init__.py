"""What results are shown with: the frame of an HTML page, charts as SVG, colors of maps."""
