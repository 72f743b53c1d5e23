"""A round of the federation, synchronous or asynchronous."""
