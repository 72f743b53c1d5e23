"""What the cloud trains, and where the adapter comes from that a round sends."""
