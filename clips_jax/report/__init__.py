"""The page a finished run leaves behind: `report.write_report` makes one self-contained `report.html`."""
