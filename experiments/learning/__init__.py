"""How a policy is learned before it is used."""
