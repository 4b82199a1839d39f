"""That this file is here lets every test below import `packed_samples`."""
