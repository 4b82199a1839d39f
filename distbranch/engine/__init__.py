"""Training on any number of ranks: the only home of torch.distributed, and free of any launcher."""
