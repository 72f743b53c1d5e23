"""The server of the federation."""
