"""The server's view of its clients: who is there, who takes part, whose update is honest."""
