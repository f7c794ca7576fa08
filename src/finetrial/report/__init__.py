"""The report of a campaign: one HTML file, report.json, verdict.md and the charts as pictures."""
