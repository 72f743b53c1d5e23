"""What parts of it cost and how well they do; what each program printed last is in results/."""
