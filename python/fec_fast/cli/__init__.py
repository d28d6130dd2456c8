"""The command line: one file per subject, `app` puts them together."""
