"""What feeds a later segment in training: who goes up, the journal, the sender.

An edge has it, and so does a worker in the middle that has a further one above
it.
"""
