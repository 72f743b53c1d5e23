"""Many runs: a cross product of settings."""
