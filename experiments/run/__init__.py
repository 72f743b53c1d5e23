"""One run: its rounds, what it records, and how a stopped one goes on."""
