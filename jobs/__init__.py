"""Ray jobs: one `main` a file: parse, load settings, call the library, report. No algorithms."""
