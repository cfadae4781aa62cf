"""A network in several parts: to answer in each, or to be trained in each."""
