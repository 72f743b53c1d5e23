"""Which components of an update are sent: the observation, the reward, and every rank policy."""
