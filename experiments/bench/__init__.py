"""What parts cost and how well they do: programs, each with what it last printed in docs/."""
