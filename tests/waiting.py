"""Waits with an end."""

import time


def poll(condition, within_s=30.0):
    """Waits for a condition; returns the seconds that it took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > within_s:
            raise TimeoutError(f"not within {within_s} s: {condition}")
        time.sleep(0.005)
    return time.monotonic() - started
