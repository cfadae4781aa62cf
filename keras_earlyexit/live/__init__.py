"""A page to try a model on: who answers, how sure, and what it saves.

Behind it run what would run in the field: an edge worker and a cloud worker,
each a process of its own. Only `page.py` knows Gradio.
"""
