"""Engines that run the stages in other processes than the one with the port."""
