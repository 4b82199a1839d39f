"""What the answers of networks cost on this machine."""
