"""Train, judge and compare variational autoencoders written as Pyro programs."""
